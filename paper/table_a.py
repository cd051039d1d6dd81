"""Table A: how far the quantization noises of attention are correlated; and the error of its product that they make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate._noise_correlation import PAIRS
from nextscale.evaluate.attention_error import (
    MOST_OBSERVED,
    AttentionError,
    as_json,
    by_block,
    by_stage,
    observed_bytes,
)
from nextscale.graph_passes.recipe import Recipe
from nextscale.measure.provenance import finite, versions
from nextscale.paper._depths import require_depth
from nextscale.paper._observed_attention import (
    ObservedAttention,
    Observing,
    OnImages,
    kept_images,
    kept_token_maps,
)
from nextscale.paper._plan import OBSERVED, PlannedStep, row_step
from nextscale.paper._rows import method_of
from nextscale.paper._table_pages import markdown_table
from nextscale.paper.paper_recipes import paper_recipe
from nextscale.paper.paper_table import Cell, Column, PaperTable, Row
from nextscale.paper.paper_table import markdown as correlations_page
from nextscale.paper.recipe_bundles import RecipeBundle, UnbuiltBundle, model_name
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import describe_machine, saturation_warning
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._wording import counted

if TYPE_CHECKING:
    from nextscale.evaluate.plot_attention_error import Curve

DEPTH = 30  # of the paper's VAR
# By the kind of pairs (`_noise_correlation.PAIRS`).
PAPER: Mapping[str, float] = {"weights": 2.5e-6, "weights and values": 1.7e-7, "values": 2.3e-6}
ROWS = tuple(f"a{bits}-{weights}{end}" for weights in ("log2", "row") for bits in (8, 6, 4) for end in ("", "-ss"))
WEIGHTS = {"log2": "log2 weights", "log2-row": "row-scaled log2 weights", "row": "row-scaled weights",
           "uniform": "uniform weights"}  # fmt: skip

# Headers and rows.
Section = tuple[list[str], list[list[str]]]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observed:
    """A row's error.

    Attributes:
        name: the recipe's.
        recipe: as the bundle's manifest has it.
        error: of its attention's product.
    """

    name: str
    recipe: Mapping[str, Any]
    error: AttentionError


@dataclass(frozen=True)
class TableA:
    """The correlations, and what they are of."""

    correlations: PaperTable
    observed: tuple[Observed, ...]

    def to_json(self) -> dict[str, Any]:
        """Those of the table, and by row the recipe and all figures by stage and block."""
        attention = {
            item.name: {"recipe": {key: value for key, value in item.recipe.items() if key != "kernels"}}
            | as_json(item.error)
            for item in self.observed
        }
        plain: dict[str, Any] = finite({"correlations": self.correlations.to_json(), "attention": attention})
        return plain


def require_size(model: ModelInfo, *, is_demo: bool) -> None:
    """Raise NextscaleError unless a model is as large as the paper's, or the demo model, or takes too much memory."""
    if not is_demo:
        require_depth("A", [DEPTH], model)
    needed = observed_bytes(model)
    if needed > MOST_OBSERVED:
        raise NextscaleError(
            f"observing attention of this model takes {needed / 1e9:.0f} GB; expected at most {MOST_OBSERVED / 1e9:.0f}"
        )


def recipe_of_row(name: str, layers: Collection[str]) -> Recipe:
    """A row's recipe; of the table's own rows without the layers that a model does not have.

    Args:
        name: a recipe's, or a TOML file.
        layers: names of the model's linear layers.
    Raises:
        NextscaleError: see `paper_recipe`; or attention is in float, which has no quantization noise.
    """
    recipe = paper_recipe(name)
    if recipe.attention.products == "float":
        raise NextscaleError(f"recipe {recipe.name}: attention is in float, which has no quantization noise")
    return recipe.of_layers(layers) if name in ROWS else recipe


def measure_table_a(
    original: Bundle,
    bundles: Sequence[RecipeBundle],
    observing: Observing,
    work: Path,
    *,
    options: SessionOptions,
    left_out: Sequence[str] = (),
    notes: Sequence[str] = (),
    on_images: OnImages = lambda what, done, total: None,
) -> TableA:
    """Observe the attention of bundles on the token maps that full precision samples; what is there is gone on with.

    Args:
        original: the model of classes in full precision.
        bundles: of the same model, whose attention is integer.
        observing: images.
        work: an existing folder that keeps what is measured.
        options: threads and memory.
        left_out: lines on rows that are missing.
        notes: further ones.
        on_images: told what is made, and how many of how many images are finished.
    Raises:
        NextscaleError: see `ObservedAttention.error`.
    """
    attention = ObservedAttention(original, observing, work, options, on_images)
    observed = tuple(
        Observed(item.name, item.bundle.manifest.recipe, attention.error(item.name, item.bundle)) for item in bundles
    )
    warnings = {item.name: saturation_warning(item.recipe) for item in observed}
    name = model_name(original)
    table = PaperTable(
        table="A",
        title="correlations of attention's quantization noises",
        model=name,
        columns=columns(),
        rows=tuple(_row(item) for item in observed),
        notes=(*_notes(name, observing), *notes),
        left_out=tuple(left_out),
        warnings=tuple(f"{name}: {warning}" for name, warning in warnings.items() if warning is not None),
        settings=asdict(observing),
        machine=describe_machine(),
        versions=versions(),
    )
    return TableA(table, observed)


def plan_table_a(
    rows: Sequence[RecipeBundle | UnbuiltBundle], observing: Observing, work: Path, image: float, observed: float
) -> list[PlannedStep]:
    """What `measure_table_a` and the builds before it have left to do, by operations.

    Args:
        rows: full precision, which samples the token maps, and the table's.
        observing, work: as for `measure_table_a`; the folder need not exist.
        image: seconds of an image in full precision.
        observed: seconds of the attention of an image.
    """
    original, *others = rows
    steps, sampled = list[PlannedStep](), 0
    for item in others:
        kept = 0
        if isinstance(original, RecipeBundle) and isinstance(item, RecipeBundle):
            kept = kept_images(original.bundle, item.bundle, observing, work)
        left = observing.images - kept
        sampled = observing.images if left else sampled
        steps.append(row_step(item, {OBSERVED: left}, left * observed, image))
    if sampled and isinstance(original, RecipeBundle):
        sampled = max(sampled - kept_token_maps(original.bundle, observing, work), 0)
    return [row_step(original, {"token maps": sampled}, sampled * image, image), *steps]


def columns() -> tuple[Column, ...]:
    """Of the correlations over all pairs, the paper's beside them, and of the means over stages and blocks."""
    pooled = [Column(kind, kind, 1, form="exponent") for kind in PAIRS]
    means = [Column(f"{kind}, by stage and block", digits=1, form="exponent") for kind in PAIRS]
    return (*pooled, *means)


def markdown(table: TableA) -> str:
    """The whole page."""
    parts = [correlations_page(table.correlations)]
    for title, (headers, rows) in sections(table).items():
        parts += [f"## {title}", "", *markdown_table(headers, rows), ""]
    return "\n".join(parts)


def sections(table: TableA) -> dict[str, Section]:
    """Titles and tables of what the correlations come with, the most telling ones first."""
    percent, share, small = "{:.2%}".format, "{:.0%}".format, "{:.1e}".format

    def stages(figure: Callable[[AttentionError], Array], form: Callable[[float], str]) -> Section:
        return _section({item.name: by_stage(figure(item.error)) for item in table.observed}, form)

    def blocks(figure: Callable[[AttentionError], Array], form: Callable[[float], str]) -> Section:
        return _section({item.name: by_block(figure(item.error)) for item in table.observed}, form)

    return {
        "Relative error of A V, by stage": stages(lambda error: error.relative, percent),
        "The same with V exact: what shift-and-sum can reach at most": stages(
            lambda error: error.relative_of_weights, percent
        ),
        "The same with A exact": stages(lambda error: error.relative_of_values, percent),
        "Bundles": _settings(table.observed),
        "Pearson's correlations": _correlations(table.observed),
        "V's share of the squared error, by stage": stages(lambda error: error.values_share, share),
        "The two parts' squares over the error's: 1 where the split is exact": stages(
            lambda error: error.explained, "{:.2f}".format
        ),
        "Mean squared error, by stage": stages(lambda error: error.mean_squared, small),
        "Relative error of A V, by block": blocks(lambda error: error.relative, percent),
        "V's share of the squared error, by block": blocks(lambda error: error.values_share, share),
    }


def panels(observed: Sequence[Observed]) -> dict[str, dict[str, Curve]]:
    """What `plot_attention_error` draws: a panel for each quantizer, and in it a line with shift-and-sum and without.

    Needs matplotlib.
    """
    from nextscale.evaluate.plot_attention_error import Curve

    found = dict[str, dict[str, Curve]]()
    for item in observed:
        attention = item.recipe["attention"]
        panel = found.setdefault(f"{WEIGHTS[attention['weights']]}, {item.recipe['activations']['bits']} bits", {})
        label = "plain" if attention["shift_and_sum"] == "off" else "shift-and-sum"
        curve = Curve(by_stage(item.error.relative), by_stage(item.error.relative_of_weights))
        panel[item.name if label in panel else label] = curve
    return found


def _row(item: Observed) -> Row:
    pooled, _ = item.error.pooled_correlations()
    cells = [Cell(_known(abs(pooled[k])), paper=PAPER[kind]) for k, kind in enumerate(PAIRS)]
    cells += [Cell(_known(_magnitudes(item.error, k).mean())) for k in range(len(PAIRS))]
    return Row(item.name, _method(item), _bits(item.recipe), tuple(cells))


def _method(item: Observed) -> str:
    if item.name not in ROWS:
        return method_of(item.name)
    attention = item.recipe["attention"]
    shifted = "" if attention["shift_and_sum"] == "off" else ", shift-and-sum"
    return f"{WEIGHTS[attention['weights']]}{shifted}"


def _bits(recipe: Mapping[str, Any]) -> str:
    """Of weights, where a linear layer is integer, and of attention's operands."""
    return f"{recipe['weights']['bits'] if _integer_layers(recipe) else 32}/{recipe['activations']['bits']}"


def _integer_layers(recipe: Mapping[str, Any]) -> int:
    return len(recipe.get("kernels", {}).get("stage", {}))


def _magnitudes(error: AttentionError, kind: int) -> Array:
    """Of the correlations of each stage and block that has any; NaN alone where none has."""
    found = np.abs(error.correlations()[..., kind])
    known: Array = found[~np.isnan(found)]
    return known if known.size else np.array([np.nan])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _section(rows: Mapping[str, Array], form: Callable[[float], str]) -> Section:
    """A row for each bundle, with the mean before."""
    count = max((len(values) for values in rows.values()), default=0)
    cells = []
    for name, values in rows.items():
        known = values[~np.isnan(values)]
        mean = form(float(known.mean())) if known.size else "-"
        cells.append([name, mean, *("-" if np.isnan(value) else form(float(value)) for value in values)])
    return ["bundle", "mean", *(str(number + 1) for number in range(count))], cells


def _settings(observed: Sequence[Observed]) -> Section:
    """What distinguishes the bundles."""
    rows = []
    for item in observed:
        recipe, attention = item.recipe, item.recipe["attention"]
        theta = recipe["shift_and_sum"]["theta"] if "shift_and_sum" in recipe else "-"
        kl = f"{recipe['agreement']['kl']:.3f}" if "agreement" in recipe else "-"
        bits, layers = recipe["activations"]["bits"], _integer_layers(recipe)
        cells = (attention["weights"], bits, attention["shift_and_sum"], theta, layers, kl)
        rows.append([item.name, *map(str, cells)])
    return ["bundle", "A", "bits of A and V", "shift-and-sum", "theta", "integer linear layers", "KL when built"], rows


def _correlations(observed: Sequence[Observed]) -> Section:
    """With their signs, and how many pairs they are of."""
    rows = []
    for item in observed:
        pooled, pairs = item.error.pooled_correlations()
        for k, kind in enumerate(PAIRS):
            each = _magnitudes(item.error, k)
            figures = (pooled[k], each.mean(), each.max())
            cells = ["-" if np.isnan(value) else f"{value:.1e}" for value in figures]
            rows.append([item.name, kind, *cells, f"{pairs[k]:.1e}"])
    of_each = "of each stage and block: mean magnitude"
    return ["bundle", "noises of", "of all pairs", of_each, "largest", "pairs"], rows


def _notes(name: str, observing: Observing) -> tuple[str, ...]:
    return (
        f"{counted(observing.images, 'image')}, token maps that {name} samples in full precision at cfg_scale "
        f"{observing.cfg_scale:g}, seed {observing.seed}; the paper has 1,000 of VAR-d30, and does not say at which "
        "bits and by which quantizer of the attention weights, so that its figure stands beside each of ours",
        "magnitudes of Pearson's correlation over all pairs, none sampled: of the noises of one query's weights, "
        "(a_hat - a) / a, of two tokens; of a weight and its token's value, v_hat - v; and of two tokens' values",
        "error of A V: the integer product of the bundle's graph less A V of the float A and V at its inputs; "
        "relative: sqrt(sum error² / sum (A V)²); by stage: mean over blocks; by block: mean over stages",
        "rows named a8 to a4 have attention of that many bits and all else in float: the noises are attention's alone",
    )
