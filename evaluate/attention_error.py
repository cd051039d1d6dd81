"""How far integer attention is from A V, by stage and block (the paper's Fig. 1(a) and 5(a-b)), and why.

The bundle's own stage graph is run with A, V and the product as further outputs (`observe_attention`), on token maps
that full precision samples. The error of an attention is its product less A V, the latter of the very A and V that the
graph had there: it is the error of this product alone, without what earlier layers did.

Split approximately (Eq. 7, in NumPy, of what the codes mean):

    A_hat V_hat - A V  =  (A_hat - A) V  +  A (V_hat - V)  +  (A_hat - A) (V_hat - V)
                          weights' part     values' part      neglected

The parts are not orthogonal, so that their squares do not add up to the error's; `AttentionError.explained` tells how
nearly they do. Shift-and-sum acts on the values' part alone: with V exact, the weights' part would remain.

Of a model of texts it is self-attention's error. There float attention computes some queries at a time, in a subgraph
that cannot be observed, and has no error: blocks are those whose product is integer, which are all or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.subjects import Subjects
from nextscale.calib_data.text_subjects import takes_text
from nextscale.evaluate._dequantized_attention import AttentionQuantizer
from nextscale.evaluate._noise_correlation import PAIRS, PairSums, noise_pairs
from nextscale.evaluate.teacher_forced import evaluation_labels, sample
from nextscale.graph_passes.layer_facts import GUIDED_ROWS
from nextscale.graph_passes.observe_attention import attention_products, observe_attention, output_names
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._request import DEFAULT_CFG_SCALE
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._stage_runner import StageOutputs

Array: TypeAlias = NDArray[np.float64]
# The graph and NumPy round a product and a logarithm a little differently; more means that they compute another thing.
CONSISTENT = 0.01
MOST_OBSERVED = 4_000_000_000  # bytes of A, V and their products, of which more are not held in memory
CROSS_ATTENTION = ".ca.mix"  # how the names of attentions to a text end


@dataclass(frozen=True)
class AttentionError:
    """Sums of squares over images, rows (two an image, with guidance), heads, tokens and dimensions: float64 [S, D].

    Attributes:
        exact: of A V.
        error: of the product less A V.
        weights_part: of (A_hat - A) V.
        values_part: of A (V_hat - V).
        unexplained: of the product less A_hat V_hat: where it is small, NumPy's operands are the graph's.
        elements: how many elements the product had.
        pairs: of the noises, [S, D, 3, 6] (`noise_correlation`).
        images: N.
    """

    exact: Array
    error: Array
    weights_part: Array
    values_part: Array
    unexplained: Array
    elements: Array
    pairs: Array
    images: int

    def __add__(self, other: AttentionError) -> AttentionError:
        """Of both sets of images."""
        return AttentionError(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @property
    def relative(self) -> Array:
        """sqrt(sum error^2 / sum (A V)^2) of each stage and block, [S, D]."""
        return np.sqrt(self.error / self.exact)

    @property
    def relative_of_weights(self) -> Array:
        """The same if V were a float."""
        return np.sqrt(self.weights_part / self.exact)

    @property
    def relative_of_values(self) -> Array:
        """The same if A were a float."""
        return np.sqrt(self.values_part / self.exact)

    @property
    def mean_squared(self) -> Array:
        """Squared error an element, [S, D]."""
        return self.error / self.elements

    @property
    def values_share(self) -> Array:
        """V's share of the two parts' squares, [S, D]; NaN where there is no error."""
        return _ratio(self.values_part, self.values_part + self.weights_part)

    @property
    def explained(self) -> Array:
        """The two parts' squares over the error's, [S, D]: 1 if they were orthogonal and all there is."""
        return _ratio(self.values_part + self.weights_part, self.error)

    def correlations(self) -> Array:
        """Pearson's of each stage and block, [S, D, 3], of `noise_correlation.PAIRS`; NaN where there are no pairs."""
        return PairSums(self.pairs).correlation()

    def pooled_correlations(self) -> tuple[Array, Array]:
        """Over all stages and blocks together, [3], and the number of pairs, [3]."""
        pooled = PairSums(self.pairs.sum(axis=(0, 1)))
        return pooled.correlation(), pooled.pairs


def _ratio(x: Array, y: Array) -> Array:
    return np.divide(x, y, out=np.full(x.shape, np.nan), where=y > 0)


def by_stage(figure: Array) -> Array:
    """The mean over blocks of [S, D]: [S]; NaN counts as missing."""
    return _mean(figure, 1)


def by_block(figure: Array) -> Array:
    """The mean over stages of [S, D]: [D]."""
    return _mean(figure, 0)


def _mean(figure: Array, axis: int) -> Array:
    known = ~np.isnan(figure)
    return _ratio(np.where(known, figure, 0).sum(axis), known.sum(axis).astype(np.float64))


def attention_errors(
    reference: Bundle,
    bundles: Sequence[Bundle],
    options: SessionOptions,
    *,
    images: int = 16,
    seed: int = 1,
    cfg_scale: float = DEFAULT_CFG_SCALE,
    batch_size: int = 1,
    subjects: Subjects | None = None,
    token_maps: NDArray[np.int64] | None = None,
    on_images: Callable[[int], object] = lambda done: None,
) -> list[AttentionError]:
    """Measure bundles of one model, each on the token maps that `reference` samples.

    Of one stage and batch, A, V and the product of all blocks are in memory: with a batch of 1, 65 MB of the demo
    model and 360 MB of VAR-d16; see `observed_bytes`.

    Args:
        reference: the full-precision bundle.
        bundles: of the same model; the reference may be among them.
        options: threads and memory.
        images: N, spread over the classes.
        seed: of the labels and of the sampled token maps.
        cfg_scale: guidance, for sampling.
        batch_size: images at a time.
        subjects: what the N images are of, all of one size, where the model takes no classes.
        token_maps: int64 [N, ...], what `teacher_forced.sample` gave for them; None samples them.
        on_images: called with the number of images finished, of len(bundles) * images.
    Raises:
        NextscaleError: a bundle is of another model, or its attention cannot be found or is not what its recipe says.
    """
    for bundle in bundles:
        if bundle.manifest.models != reference.manifest.models:
            raise NextscaleError(f"{bundle.path}: not the model of {reference.path}; compare bundles of one model")
    if subjects is None:
        subjects = Subjects.of_classes(evaluation_labels(reference.model.num_classes, images, seed))
    settings: dict[str, Any] = {"seed": seed, "cfg_scale": cfg_scale}
    if token_maps is None:
        sampled = sample(Generator(reference, options), subjects, range(images), batch_size=batch_size, **settings)
        token_maps = np.concatenate([batch.tokens for batch in sampled])
    num_stages = reference.manifest.models[int(subjects.sizes[0])].num_stages
    results = []
    for k, bundle in enumerate(bundles):
        stage, quantizers = open_observed(bundle, options)

        def on_batch(done: int, before: int = k * images) -> None:
            on_images(before + done)

        outputs = [output for name in quantizers for output in output_names(name)]
        batches = stage.run(
            subjects, token_maps, outputs=outputs, batch_size=batch_size, on_images=on_batch, **settings
        )
        results.append(_measure(num_stages, quantizers, batches, images))
        if results[-1].unexplained.sum() > CONSISTENT**2 * results[-1].exact.sum():
            raise NextscaleError(
                f"{bundle.path}: its attention does not compute what its recipe says; build the bundle again"
            )
    return results


def has_attention_error(bundle: Bundle) -> bool:
    """Whether `attention_errors` has anything to measure: not in a bundle of texts whose self-attention is in float."""
    recipe = bundle.manifest.recipe
    return not takes_text(bundle.manifest) or recipe.get("attention", {}).get("products") == "integer"


def observed_bytes(model: ModelInfo) -> int:
    """Of A, V and the product of all blocks at the last stage, of one image's two rows: what `attention_errors` needs.

    Args:
        model: at the size.
    """
    tokens = [height * width for height, width in model.stage_sizes]
    scores, values = model.num_heads * tokens[-1] * sum(tokens), model.embed_dim * (tokens[-1] + sum(tokens))
    return 4 * GUIDED_ROWS * model.depth * (scores + values)


def _measure(
    num_stages: int,
    quantizers: Mapping[str, AttentionQuantizer | None],
    batches: Iterable[tuple[slice, StageOutputs]],
    images: int,
) -> AttentionError:
    shape = (num_stages, len(quantizers))
    sums, pairs = np.zeros((6, *shape)), np.zeros((*shape, len(PAIRS), 6))
    for _, stage in batches:
        for block, (name, quantizer) in enumerate(quantizers.items()):
            a, v, product = (stage.outputs[output] for output in output_names(name))
            found = attention_sums(a, v, product, quantizer, stage.stage)
            sums[:, stage.stage, block] += found[0]
            pairs[stage.stage, block] += found[1]
    exact, error, weights_part, values_part, unexplained, elements = sums
    return AttentionError(exact, error, weights_part, values_part, unexplained, elements, pairs, images)


def attention_sums(
    a: NDArray[np.float32],
    v: NDArray[np.float32],
    product: NDArray[np.float32],
    quantizer: AttentionQuantizer | None,
    stage: int,
) -> tuple[Array, Array]:
    """The sums of `AttentionError` of one attention, [6], and its noises' pairs, [3, 6].

    Args:
        a: [R, H, l, T].
        v: [R, H, T, d].
        product: [R, H, l, d].
        quantizer: None if the product is of floats.
        stage: index.
    """
    weights, values = a.astype(np.float64), v.astype(np.float64)
    if quantizer is None:
        # What rounding of the float product leaves is no error of a quantizer, but shown.
        exact = weights @ values
        rounding = _squares(product - exact)
        return np.array([_squares(exact), rounding, 0, 0, rounding, exact.size]), np.zeros((len(PAIRS), 6))
    found = quantizer.dequantize(a, v, stage)
    noise_of_weights, noise_of_values = found.weights - weights, found.values - values
    both = np.concatenate([values, noise_of_values], axis=-1)
    exact, values_part = np.split(weights @ both, 2, axis=-1)
    weights_part, cross = np.split(noise_of_weights @ both, 2, axis=-1)
    error = product - exact
    unexplained = error - (weights_part + values_part + cross)
    sums = [*map(_squares, (exact, error, weights_part, values_part, unexplained)), exact.size]
    return np.array(sums), noise_pairs(weights, noise_of_weights, noise_of_values, found.representable)


def _squares(x: Array) -> float:
    return float(np.square(x).sum())


def open_observed(
    bundle: Bundle, options: SessionOptions
) -> tuple[ObservedStage, dict[str, AttentionQuantizer | None]]:
    """The bundle's stage graph with A, V and the product of each attention as further outputs.

    With it come the attention's names, in order, and their quantizers, None for products of floats.

    Of a model of texts these are self-attentions of integer products.

    Raises:
        NextscaleError: the attention cannot be found.
    """
    stage_path, of_text = bundle.graph_path("stage"), takes_text(bundle.manifest)
    try:
        model = ir.load(stage_path)
        found_products = attention_products(model.graph, floats=not of_text)
        observed = observe_attention(model, floats=not of_text)
    except ValueError as error:
        raise NextscaleError(f"{stage_path}: {error}") from None
    products = [found for found in found_products if not found.name.endswith(CROSS_ATTENTION)]
    if not products:
        what = "integer self-attention" if of_text else "attention"
        raise NextscaleError(f"{stage_path}: no {what} found in it")
    quantizers = {
        found.name: AttentionQuantizer.of(found, bundle.manifest.recipe) if found.integer else None
        for found in products
    }
    return ObservedStage.open(bundle, observed, options), quantizers


def as_json(error: AttentionError) -> dict[str, Any]:
    """Plain numbers of six digits and lists, for a JSON file: matrices are [stage][block]; None is no number."""
    pooled, pairs = error.pooled_correlations()
    figures = {
        "relative": error.relative,
        "relative_of_weights": error.relative_of_weights,
        "relative_of_values": error.relative_of_values,
        "values_share": error.values_share,
        "explained": error.explained,
        "mean_squared": error.mean_squared,
    }
    return {
        "images": error.images,
        **{name: _plain(figure) for name, figure in figures.items()},
        "correlations": {
            name: {
                "pooled": _plain(pooled)[k],
                "pairs": int(pairs[k]),
                "by_stage_and_block": _plain(error.correlations()[..., k]),
            }
            for k, name in enumerate(PAIRS)
        },
    }


def _plain(figure: Array) -> Any:
    if figure.ndim:
        return [_plain(part) for part in figure]
    return None if np.isnan(figure) else float(f"{figure:.6g}")
