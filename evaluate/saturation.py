"""What becomes of a bundle's integer products on an x86 CPU without VNNI.

There ONNX Runtime's u8 x s8 kernels (MLAS) multiply and add two neighbours of the reduction at a time into 16 bits,
which saturates (vpmaddubsw), and add up the pairs in 32 bits (vpmaddwd, vpaddd):

    y = sum over j of clip(a[2j] b[2j] + a[2j+1] b[2j+1], -2^15, 2^15 - 1)

Neighbours are those of `integer_products.reduction_rows`; zero points are taken off afterwards, with sums of rows and
columns. `tests/goldens/avx2_products.npz` holds results of those kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data.observed_stage import ObservedStage
from nextscale.calib_data.subjects import Subjects
from nextscale.evaluate.integer_products import (
    IntegerProduct,
    expose_operands,
    integer_products,
    output_name,
    reduction_rows,
)
from nextscale.graph_passes._graph_session import open_model
from nextscale.graph_passes.integer_model import attention_bits
from nextscale.graph_passes.qparams import PAIR_LIMIT, TWO_BYTE_BITS, largest_pair_sum
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions

Rows = tuple[NDArray[np.uint8], NDArray[np.int64]]  # codes [M, K] and the zero point of each row [M]

# Spread evenly over each operand at each stage: enough to tell a layer that suffers, at a hundredth of a build's time.
ROWS = 8
PIXELS = 256
HEADS = 4
CHUNK = 1 << 22  # pairs of products at a time
# Of codes that no recipe decides about, by the graph's role.
BITS_OF = {"decoder": 8, "encoder": TWO_BYTE_BITS, "text_encoder": 8}


@dataclass(frozen=True)
class Saturation:
    """What saturation does to one layer.

    Attributes:
        possible: whether there are codes of activations with which a pair of products saturates.
        pairs: share of the observed pairs of products that saturate; None: not observed.
        error: what that takes from the layer's result, before its bias, relative to the result: a ratio of Euclidean
            norms; None: not observed.
    """

    possible: bool
    pairs: float | None
    error: float | None


@dataclass(frozen=True)
class Saturated:
    """A product of u8 [M, K] and s8 [K, N].

    Attributes:
        lost: int64 [M, N], the exact product less the saturated one.
        pairs: how many pairs of products saturate.
    """

    lost: NDArray[np.int64]
    pairs: int


def saturate(a: NDArray[np.uint8], b: NDArray[np.int8]) -> Saturated:
    """Emulate the product of u8 [M, K] and s8 [K, N] on a CPU without VNNI.

    Only pairs of weights that the largest code would saturate are looked at, which are few.
    """
    (rows, size), columns = a.shape, b.shape[1]
    a_pairs = np.pad(a.astype(np.int32), ((0, 0), (0, size % 2))).reshape(rows, -1, 2)
    b_pairs = np.pad(b.astype(np.int16), ((0, size % 2), (0, 0))).reshape(-1, 2, columns)
    limit = PAIR_LIMIT // max(int(a.max(initial=0)), 1)
    candidates = np.maximum(b_pairs, 0).sum(axis=1) > limit
    candidates |= np.minimum(b_pairs, 0).sum(axis=1) < -limit
    column, pair = np.nonzero(candidates.T)  # in the order of the columns
    lost, saturating, step = np.zeros((columns, rows), np.int64), 0, max(1, CHUNK // max(rows, 1))
    for first in range(0, len(pair), step):
        its_pair, its_column = pair[first : first + step], column[first : first + step]
        weights = b_pairs[its_pair, :, its_column].astype(np.int32)
        sums = a_pairs[:, its_pair, 0] * weights[:, 0] + a_pairs[:, its_pair, 1] * weights[:, 1]
        beyond = sums - np.clip(sums, -PAIR_LIMIT - 1, PAIR_LIMIT)
        saturating += int(np.count_nonzero(beyond))
        found, starts = np.unique(its_column, return_index=True)
        lost[found] += np.add.reduceat(beyond, starts, axis=1).T
    return Saturated(np.ascontiguousarray(lost.T), saturating)


def can_saturate(product: IntegerProduct, bits: int, attention_weights: str) -> bool:
    """Whether some codes of the u8 operand would saturate a pair of products.

    Args:
        product: of any kind.
        bits: of the u8 codes, and of the s8 ones in attention.
        attention_weights: their quantizer; powers of two end at 128, and two products of that are within 16 bits.
    """
    if product.weight.const_value is not None:
        rows = reduction_rows(product.weight.const_value.numpy()).astype(np.int16)
        return bool((2**bits - 1) * int(largest_pair_sum(rows).max(initial=0)) > PAIR_LIMIT)
    if product.kind == "mix" and attention_weights.startswith("log2"):
        return False
    return 2 * (2**bits - 1) * 2 ** (bits - 1) > PAIR_LIMIT


def measure_saturation(
    bundle: Bundle,
    graphs: Mapping[str, ir.Model],
    options: SessionOptions,
    subjects: Subjects,
) -> dict[str, Saturation]:
    """Emulate the integer products of a bundle on a sample of the rows of one sampled image.

    Graphs of which no product can saturate are not run.

    Args:
        bundle: of an integer recipe.
        graphs: its stage and decoder, and its encoder and text encoder if those are to be looked at; the encoder reads
            the picture that the decoder makes, the text encoder the first prompt of the stored generation.
        options: threads and memory.
        subjects: what one image is of.
    Returns:
        by layer, named as in the manifest's "kernels", or by attention's product.
    """
    recipe = bundle.manifest.recipe
    bits, weights = int(recipe["activations"]["bits"]), str(recipe["attention"]["weights"])
    of_attention = attention_bits(bits, bool(recipe.get("reduce_range")))
    products = {role: integer_products(model) for role, model in graphs.items()}
    found, saturating = dict[str, _Layer](), set[str]()
    for role, its_products in products.items():
        for product in its_products:
            its_bits = BITS_OF[role] if role != "stage" else bits if product.kind == "linear" else of_attention
            layer = _layer(found, product)
            layer.possible |= can_saturate(product, its_bits, weights)
            if layer.possible:
                saturating.add(role)
    for role, operands in _runs(bundle, graphs, saturating, options, subjects):
        for product in products[role]:
            if product.is_observable:
                found[product.name].observe(product, operands)
    return {name: layer.result() for name, layer in found.items()}


def as_report(found: Mapping[str, Saturation]) -> dict[str, Any]:
    """What a manifest says: how many layers and attention products are integer, and which of them can saturate."""
    return {
        "products": len(found),
        "can_saturate": {
            name: {"pairs": item.pairs, "error": item.error} for name, item in found.items() if item.possible
        },
    }


@dataclass
class _Layer:
    """What was observed of the products with one weight, or of one product of attention.

    Attributes:
        weight: s8, as the graph has it, and read when it is multiplied; None in attention.
        scale: float32 [N], of the weight's columns.
        rows: of the codes that the weight is multiplied by.
        pairs, saturating: of products, how many there were and how many saturate.
        lost, total: squares of what saturation takes from the results, and of the results.
    """

    weight: ir.TensorProtocol | None
    scale: NDArray[np.float32]
    possible: bool = False
    rows: list[Rows] = field(default_factory=list)
    pairs: int = 0
    saturating: int = 0
    lost: float = 0.0
    total: float = 0.0

    def observe(self, product: IntegerProduct, operands: Mapping[str, NDArray[Any]]) -> None:
        """Take a sample of the product's operands: those of a weight are kept, those of attention multiplied."""
        if not self.possible:
            return
        codes, zero_point = _value(product.codes, operands), np.zeros((), np.uint8)
        if product.zero_point is not None:
            zero_point = _value(product.zero_point, operands)
        zero = int(zero_point.reshape(-1)[0])
        if product.kind == "convolution":
            kernel = product.node.attributes["kernel_shape"].as_ints()
            self._keep(_windows(codes, kernel, product.pads(), zero), zero)
        elif self.weight is not None:
            rows = codes.reshape(-1, codes.shape[-1])
            self._keep(rows[_spread(len(rows), ROWS)], zero)
        else:
            values = _value(product.weight, operands)
            values = values.reshape(-1, *values.shape[-2:])
            codes = codes.reshape(-1, *codes.shape[-2:])
            for head in _spread(len(codes), HEADS):
                rows = codes[head][_spread(codes.shape[1], ROWS)]
                self._multiply((rows, np.full(len(rows), zero)), values[head])

    def result(self) -> Saturation:
        """Multiply the rows that were kept, all at once."""
        if self.rows and self.weight is not None:
            codes, zero_points = (np.concatenate(parts) for parts in zip(*self.rows, strict=True))
            self._multiply((codes, zero_points), np.ascontiguousarray(reduction_rows(self.weight.numpy()).T))
        if not self.pairs:
            return Saturation(self.possible, None, None)
        error = float(np.sqrt(self.lost / self.total)) if self.total else 0.0
        return Saturation(self.possible, self.saturating / self.pairs, error)

    def _keep(self, rows: NDArray[np.uint8], zero_point: int) -> None:
        self.rows.append((rows, np.full(len(rows), zero_point)))

    def _multiply(self, rows: Rows, weight: NDArray[np.int8]) -> None:
        codes, zero_points = rows
        found, centred = saturate(codes, weight), codes.astype(np.float32) - zero_points[:, None].astype(np.float32)
        self.pairs += len(codes) * -(-len(weight) // 2) * weight.shape[1]
        self.saturating += found.pairs
        self.lost += _squares(found.lost * self.scale)
        self.total += _squares((centred @ weight.astype(np.float32)) * self.scale)


def _layer(layers: dict[str, _Layer], product: IntegerProduct) -> _Layer:
    if product.name not in layers:
        weight = product.weight.const_value
        scale = None if product.weight_scale is None else product.weight_scale.const_value
        layers[product.name] = _Layer(
            weight,
            np.ones(1, np.float32) if scale is None else scale.numpy(),
        )
    return layers[product.name]


def _value(value: ir.Value, operands: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    return operands[output_name(value)] if value.const_value is None else value.const_value.numpy()


def _windows(
    x: NDArray[np.uint8], kernel: tuple[int, ...], pads: tuple[int, int, int, int], zero_point: int
) -> NDArray[np.uint8]:
    """The rows that a convolution multiplies, for some pixels of [B, H, W, C]: [M, kh kw C]."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero_point)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, (1, 2))  # [B, H', W', C, kh, kw]
    chosen = np.unravel_index(_spread(int(np.prod(windows.shape[:3])), PIXELS), windows.shape[:3])
    return np.moveaxis(windows[chosen], 1, -1).reshape(len(chosen[0]), -1)


def _spread(size: int, most: int) -> NDArray[np.int64]:
    """At most so many indices below `size`, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64))


def _squares(x: NDArray[Any]) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _runs(
    bundle: Bundle,
    graphs: Mapping[str, ir.Model],
    wanted: Collection[str],
    options: SessionOptions,
    subjects: Subjects,
) -> Iterator[tuple[str, Mapping[str, NDArray[Any]]]]:
    """The operands of the graphs of some roles: at each stage of one image, of the decoder, and of the others.

    The decoder reads what the stages make, and the encoder what the decoder makes.
    """

    def operands(role: str, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        exposed = expose_operands(graphs[role])
        names = [str(output.name) for output in exposed.graph.outputs]
        session = open_model(exposed, bundle.folder, options, bundle.linked_data())
        return dict(zip(names, session.run(names, inputs), strict=True))

    if not {"stage", "decoder", "encoder"}.isdisjoint(wanted):
        observed = ObservedStage.open(bundle, expose_operands(graphs["stage"]), options)
        for _, found in observed.run(subjects, subjects.sampled(bundle.manifest)):
            yield "stage", found.outputs
    if not {"decoder", "encoder"}.isdisjoint(wanted):
        decoded = operands("decoder", {"f_hat": found.f_hat.numpy()})
        yield "decoder", decoded
    if "encoder" in wanted:
        size = bundle.manifest.input_of_kind("size")
        further = {} if size is None else {size.name: np.array(subjects.sizes[0])}
        yield "encoder", operands("encoder", {"images": decoded["images"], **further})
    prompts = bundle.manifest.verify.prompts
    if "text_encoder" in wanted and prompts is not None:
        token_ids = bundle.tokenizer.encode(prompts[0])
        yield "text_encoder", operands("text_encoder", {"token_ids": token_ids[None]})
