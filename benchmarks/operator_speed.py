"""How fast operators of nextscale-ops are at VAR-d16's sizes, each beside the stock graph that it replaces.

    python benchmarks/operator_speed.py --library build/kernels/libnextscale_ops.so

A graph has several layers of the same input, so that weights come from memory as they do in a model. Times are of one
layer; the runs of all contenders are interleaved. Needs numpy, onnx and onnxruntime alone, and for integer attention
and sampling, whose stock graphs are nextscale's own, nextscale with its extra "export".
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
ISAS = ("amx", "avx512_vnni", "avx_vnni", "avx2", "portable")
WIDTH, HIDDEN, HEADS, ENTRIES = 1024, 4096, 16, 4096
STAGES = tuple(pn * pn for pn in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
EPSILON = 1e-6
PLACES = 8  # of attentive tokens
MICROSOFT = "com.microsoft"


class Graph:
    """A graph in the making: inputs to feed, constants, nodes."""

    def __init__(self) -> None:
        self.feeds: dict[str, Array] = {}
        self.constants: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.outputs: list[str] = []

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def feed(self, name: str, value: Array) -> str:
        self.feeds[name] = value
        return name

    def add(self, op_type: str, inputs: Sequence[str], *outputs: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), list(outputs), domain=domain, **attributes))
        return outputs[0]

    def serialized(self) -> bytes:
        fed = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in self.feeds.items()
        ]
        made = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        constants = [numpy_helper.from_array(a, name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, "operators", fed, made, initializer=constants)
        opsets = [helper.make_opsetid(name, version) for name, version in (("", 21), (MICROSOFT, 1), ("nextscale", 1))]
        model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        return model


@dataclass
class Case:
    """An operator and what it replaces.

    Args:
        name: printed.
        operations: of the products of one layer.
        layers: of a graph.
    """

    name: str
    operations: int
    layers: int
    stock: Graph = field(default_factory=Graph)
    fused: Graph = field(default_factory=Graph)

    def both(self) -> tuple[Graph, Graph]:
        return self.stock, self.fused


def known_range(case: Case, name: str, scale: float, zero_point: int) -> list[str]:
    for graph in case.both():
        graph.constant(f"{name}.scale", scale)
        graph.constant(f"{name}.zero_point", zero_point, np.uint8)
    return [f"{name}.scale", f"{name}.zero_point"]


def layer_constants(case: Case, layer: str, k: int, n: int, seed: int) -> tuple[list[str], Array]:
    """Names of weight, scale and bias, and the weight's sums."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (k, n)).astype(np.int8)
    scale, bias = rng.uniform(1e-4, 1e-3, n), rng.standard_normal(n)
    for graph in case.both():
        graph.constant(f"{layer}.weight", weight, np.int8)
        graph.constant(f"{layer}.weight_scale", scale)
        graph.constant(f"{layer}.bias", bias)
    return [f"{layer}.weight", f"{layer}.weight_scale", f"{layer}.bias"], weight.sum(0, dtype=np.int64)


def pair_linear(tokens: int, k: int, n: int, epilogue: str, layers: int) -> Case:
    """Guided rows as a pair; `epilogue` is plain, gelu (and codes of a pair) or residual."""
    case = Case(f"PairLinear {2 * tokens}x{k}x{n} {epilogue}", 4 * tokens * k * n, layers)
    stock, fused = case.both()
    rng = np.random.default_rng(0)
    for name in ("u", "d"):
        codes = rng.integers(0, 256, (1, tokens, k)).astype(np.uint8)
        for graph in case.both():
            graph.feed(name, codes)
    u, d = known_range(case, "u", 0.02, 120), known_range(case, "d", 0.004, 128)
    y_u, y_d = known_range(case, "y", 0.03, 10), known_range(case, "y_difference", 0.006, 128)
    if epilogue == "residual":
        residual = rng.standard_normal((2, tokens, n)).astype(np.float32)
        gain = rng.standard_normal((2, 1, n)).astype(np.float32)
        fused.feed("residual", residual)
        fused.feed("gain", gain)
        for row, name in enumerate(("with", "without")):
            stock.feed(f"residual.{name}", residual[row : row + 1])
            stock.feed(f"gain.{name}", gain[row : row + 1])
    for layer in (f"layer{i}" for i in range(layers)):
        weights, _ = layer_constants(case, layer, k, n, 1 + int(layer[5:]))
        weight, weight_scale, bias = weights
        without = stock.add(
            "MatMulIntegerToFloat", ["u", weight, u[0], weight_scale, u[1], "", bias], f"{layer}.u", domain=MICROSOFT
        )
        difference = stock.add(
            "MatMulIntegerToFloat", ["d", weight, d[0], weight_scale, d[1]], f"{layer}.d", domain=MICROSOFT
        )
        of_class = stock.add("Add", [without, difference], f"{layer}.with")
        inputs = ["u", "d", *u, *d, *weights]
        if epilogue == "plain":
            stock.outputs.append(stock.add("Concat", [of_class, without], f"{layer}.y", axis=0))
            fused.outputs.append(fused.add("PairLinear", inputs, f"{layer}.y", domain="nextscale"))
        elif epilogue == "residual":
            for name, y in (("with", of_class), ("without", without)):
                scaled = stock.add("Mul", [y, f"gain.{name}"], f"{layer}.{name}.scaled")
                stock.outputs.append(stock.add("Add", [f"residual.{name}", scaled], f"{layer}.{name}.y"))
            fused.outputs.append(
                fused.add("PairLinear", [*inputs, "residual", "gain"], f"{layer}.y", domain="nextscale")
            )
        else:
            with_class, without = (stock.add("Gelu", [y], f"{y}.gelu", approximate="tanh") for y in (of_class, without))
            difference = stock.add("Sub", [with_class, without], f"{layer}.difference")
            stock.add("QuantizeLinear", [without, *y_u], f"{layer}.codes")
            stock.add("QuantizeLinear", [difference, *y_d], f"{layer}.difference_codes")
            fused.add(
                "PairLinear",
                [*inputs, "", "", *y_u, *y_d],
                "",
                f"{layer}.codes",
                f"{layer}.difference_codes",
                domain="nextscale",
                activation="gelu_tanh",
                ranges="pair",
            )
            for graph in case.both():
                graph.outputs += [f"{layer}.codes", f"{layer}.difference_codes"]
    return case


def image_codes(graph: Graph, x: str, name: str) -> list[str]:
    """Stock nodes for codes, scale and zero point of an image of two rows."""
    high, low = (
        graph.add(reduce, [x, graph.constant("row_axes", [1, 2], np.int64)], f"{name}.{reduce}", keepdims=0)
        for reduce in ("ReduceMax", "ReduceMin")
    )
    rows, of_rows = graph.constant("rows", [2, -1], np.int64), graph.constant("first_axis", [0], np.int64)
    ends = []
    for extreme, reduce in ((high, "ReduceMax"), (low, "ReduceMin")):
        by_row = graph.add("Reshape", [extreme, rows], f"{extreme}.rows")
        merged = graph.add(reduce, [by_row, of_rows], f"{extreme}.merged", keepdims=0)
        ends.append(graph.add("Concat", [merged, merged], f"{extreme}.image", axis=0))
    zero = graph.constant("zero", 0.0)
    above = graph.add("Max", [ends[0], zero], f"{name}.above")
    below = graph.add("Max", [graph.add("Neg", [ends[1]], f"{name}.negative"), zero], f"{name}.below")
    width = graph.add("Add", [above, below], f"{name}.width")
    step = graph.add("Div", [width, graph.constant("qmax", 255.0)], f"{name}.step")
    scale = graph.add("Max", [step, graph.constant("least_scale", 2.0**-100)], f"{name}.scale")
    zero_point = graph.add("QuantizeLinear", [below, scale], f"{name}.zero_point", axis=0)
    return [graph.add("QuantizeLinear", [x, scale, zero_point], f"{name}.codes", axis=0), scale, zero_point]


def image_linear(tokens: int, k: int, n: int, epilogue: str, layers: int) -> Case:
    """A range for each image of two rows; `epilogue` is plain, gelu (and codes with a new range) or residual."""
    case = Case(f"Linear by image {2 * tokens}x{k}x{n} {epilogue}", 4 * tokens * k * n, layers)
    stock, fused = case.both()
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, tokens, k)).astype(np.uint8)
    for graph in case.both():
        graph.feed("codes", codes)
    scale, zero_point = np.full(2, 0.02, np.float32), np.full(2, 120, np.uint8)
    fused.feed("scale", scale)
    fused.feed("zero_point", zero_point)
    stock.feed("scale", scale.reshape(2, 1, 1))
    stock.feed("offset", (scale * (zero_point.astype(np.float32) - 128)).reshape(2, 1, 1))
    middle = stock.constant("middle", 128, np.uint8)
    if epilogue == "residual":
        for graph in case.both():
            graph.feed("residual", rng.standard_normal((2, tokens, n)).astype(np.float32))
            graph.feed("gain", rng.standard_normal((2, 1, n)).astype(np.float32))
    for layer in (f"layer{i}" for i in range(layers)):
        weights, sums = layer_constants(case, layer, k, n, 1 + int(layer[5:]))
        weight, weight_scale, bias = weights
        column = stock.constant(f"{layer}.column", -sums * stock.constants[weight_scale])
        inputs = ["codes", weight, "scale", weight_scale, middle]
        product = stock.add("MatMulIntegerToFloat", inputs, f"{layer}.product", domain=MICROSOFT)
        shift = stock.add("Mul", ["offset", column], f"{layer}.shift")
        y = stock.add("Add", [product, stock.add("Add", [shift, bias], f"{layer}.added")], f"{layer}.result")
        inputs = ["codes", "scale", "zero_point", *weights]
        if epilogue == "plain":
            stock.outputs.append(y)
            fused.outputs.append(fused.add("Linear", inputs, f"{layer}.y", domain="nextscale"))
        elif epilogue == "residual":
            scaled = stock.add("Mul", [y, "gain"], f"{layer}.scaled")
            stock.outputs.append(stock.add("Add", ["residual", scaled], f"{layer}.y"))
            fused.outputs.append(fused.add("Linear", [*inputs, "residual", "gain"], f"{layer}.y", domain="nextscale"))
        else:
            y = stock.add("Gelu", [y], f"{layer}.gelu", approximate="tanh")
            stock.outputs += image_codes(stock, y, f"{layer}.y")
            results = [f"{layer}.codes", "", f"{layer}.scale", f"{layer}.zero_point"]
            fused.add(
                "Linear",
                inputs,
                "",
                *results,
                domain="nextscale",
                activation="gelu_tanh",
                ranges="image",
                image_rows=2,
            )
            fused.outputs += [name for name in results if name]
    return case


def norm(tokens: int, ranges: str, layers: int) -> Case:
    """LayerNorm, modulation and codes of two rows; `ranges` is pair or image."""
    case = Case(f"NormQuantize {ranges} {2 * tokens}x{WIDTH}", 0, layers)
    stock, fused = case.both()
    rng = np.random.default_rng(0)
    fed = {
        "x": rng.standard_normal((2, tokens, WIDTH)),
        "gain": rng.standard_normal((2, 1, WIDTH)),
        "shift": rng.standard_normal((2, 1, WIDTH)),
    }
    ones = stock.constant("ones", np.ones(WIDTH))
    for name, value in fed.items():
        fused.feed(name, value.astype(np.float32))
        if ranges == "image":
            stock.feed(name, value.astype(np.float32))
        else:  # a stock graph keeps both rows apart
            for row, of in enumerate(("with", "without")):
                stock.feed(f"{name}.{of}", value[row : row + 1].astype(np.float32))
    u, d = known_range(case, "u", 0.03, 128), known_range(case, "d", 0.04, 128)
    for layer in (f"layer{i}" for i in range(layers)):
        modulated = []
        for of in ("",) if ranges == "image" else (".with", ".without"):
            normal = stock.add("LayerNormalization", [f"x{of}", ones], f"{layer}.normal{of}", axis=-1, epsilon=EPSILON)
            scaled = stock.add("Mul", [normal, f"gain{of}"], f"{layer}.scaled{of}")
            modulated.append(stock.add("Add", [scaled, f"shift{of}"], f"{layer}.y{of}"))
        if ranges == "image":
            stock.outputs += image_codes(stock, modulated[0], f"{layer}.y")
            results = [f"{layer}.codes", "", f"{layer}.scale", f"{layer}.zero_point"]
            inputs = ["x", "gain", "shift"]
        else:
            difference = stock.add("Sub", modulated, f"{layer}.difference")
            stock.outputs.append(stock.add("QuantizeLinear", [modulated[1], *u], f"{layer}.codes"))
            stock.outputs.append(stock.add("QuantizeLinear", [difference, *d], f"{layer}.difference_codes"))
            results = [f"{layer}.codes", f"{layer}.difference_codes"]
            inputs = ["x", "gain", "shift", *u, *d]
        fused.add("NormQuantize", inputs, *results, domain="nextscale", ranges=ranges, epsilon=EPSILON, image_rows=2)
        fused.outputs += [name for name in results if name]
    return case


def attention(tokens: int, ranges: str, layers: int) -> Case:
    """Attention in float of two rows, after the tokens of all smaller stages; `ranges` is none or pair.

    One layer: ONNX Runtime would make one of several that have nothing of their own.
    """
    past, size = sum(stage for stage in STAGES if stage < tokens), WIDTH // HEADS
    case = Case(f"Attention {ranges} 2x{tokens}x{past + tokens}", 8 * WIDTH * tokens * (past + tokens), layers)
    stock, fused = case.both()
    rng = np.random.default_rng(0)
    past_key, scale = rng.standard_normal((2, HEADS, size, past)), np.full(HEADS, 4.0)
    fed = {name: rng.standard_normal((2, tokens, WIDTH)) for name in ("query", "key", "value")}
    fed["past_key"] = past_key / np.linalg.norm(past_key, axis=2, keepdims=True)
    fed["past_value"] = rng.standard_normal((2, HEADS, past, size))
    for graph in case.both():
        for name, value in fed.items():
            graph.feed(name, value.astype(np.float32))
    split, joined = (
        stock.constant(name, shape, np.int64)
        for name, shape in (("split", [0, 0, HEADS, size]), ("joined", [0, 0, WIDTH]))
    )
    stock.constant("scale", scale.reshape(1, HEADS, 1, 1))
    codes = [*known_range(case, "u", 0.01, 128), *known_range(case, "d", 0.01, 128)] if ranges == "pair" else []
    for layer in (f"layer{i}" for i in range(layers)):

        def of_heads(name: str, perm: Sequence[int], unit: bool, layer: str = layer) -> str:
            x = stock.add("Reshape", [name, split], f"{layer}.{name}.heads")
            if unit:
                x = stock.add("LpNormalization", [x], f"{layer}.{name}.unit", axis=-1, p=2)
            return stock.add("Transpose", [x], f"{layer}.{name}", perm=perm)

        query = stock.add("Mul", [of_heads("query", [0, 2, 1, 3], True), "scale"], f"{layer}.q")
        new_key, new_value = of_heads("key", [0, 2, 3, 1], True), of_heads("value", [0, 2, 1, 3], False)
        keys = stock.add("Concat", ["past_key", new_key], f"{layer}.present_key", axis=3)
        values = stock.add("Concat", ["past_value", new_value], f"{layer}.present_value", axis=2)
        logits = stock.add("MatMul", [query, keys], f"{layer}.logits")
        weights = stock.add("Softmax", [logits], f"{layer}.weights", axis=-1)
        mixed = stock.add("MatMul", [weights, values], f"{layer}.mixed")
        by_token = stock.add("Transpose", [mixed], f"{layer}.by_token", perm=[0, 2, 1, 3])
        y = stock.add("Reshape", [by_token, joined], f"{layer}.y")
        results = [y, "", ""]
        if ranges == "pair":
            results = ["", f"{layer}.codes", f"{layer}.difference_codes"]
            of_class, without = f"{layer}.with", f"{layer}.without"
            stock.add("Split", [y], of_class, without, axis=0, num_outputs=2)
            difference = stock.add("Sub", [of_class, without], f"{layer}.difference")
            stock.add("QuantizeLinear", [without, *codes[:2]], results[1])
            stock.add("QuantizeLinear", [difference, *codes[2:]], results[2])
        results += [keys, values]
        inputs = [*fed, fused.constant("query_scale", scale), *codes]
        fused.add("Attention", inputs, *results, domain="nextscale", heads=HEADS, ranges=ranges)
        for graph in case.both():
            graph.outputs += [name for name in results if name]
    return case


class Quantized(Graph):
    """A graph of an attention in float, whose model has it in integers."""

    def __init__(self, of: Graph, weights: str, theta: float | None) -> None:
        super().__init__()
        self.feeds, self.float_model, self.weights, self.theta = of.feeds, of.serialized(), weights, theta

    def serialized(self) -> bytes:
        import onnx_ir as ir

        from nextscale.graph_passes.expand_attentive_tokens import ShiftAndSum
        from nextscale.graph_passes.quantize_attention import quantize_attention

        model = shape_inference.infer_shapes(onnx.load_model_from_string(self.float_model))
        for i, node in enumerate(model.graph.node):
            node.name = f"node{i}"
        how = None if self.theta is None else ShiftAndSum("residual", self.theta, (PLACES,))
        weights: Any = self.weights
        made = quantize_attention(ir.from_proto(model), weights, 8, 2, shift_and_sum=how)
        return ir.to_proto(made).SerializeToString()


def integer_attention(tokens: int, weights: str, attentive: bool) -> Case:
    """Attention in integers of the same rows; with shift-and-sum, tokens of more than the mean weight are attentive."""
    case = attention(tokens, "none", 1)
    which = f"IntegerAttention {weights}{' shift-and-sum' if attentive else ''}"
    case.name = case.name.replace("Attention none", which)
    node = case.fused.nodes.pop()
    theta = 1 / sum(stage for stage in STAGES if stage <= tokens) if attentive else None
    case.stock = Quantized(case.stock, weights, theta)
    case.fused.add(
        "IntegerAttention",
        node.input,
        *(name for name in node.output if name),
        domain="nextscale",
        heads=HEADS,
        weights=weights,
        image_rows=2,
        **({"theta": theta, "places": [PLACES]} if attentive else {}),
    )
    return case


class Sampler(Graph):
    """The choice of tokens in stock operators, with the inputs of the operator Sample."""

    def __init__(self, of: Graph) -> None:
        super().__init__()
        self.feeds = of.feeds

    def serialized(self) -> bytes:
        import onnx_ir as ir

        from nextscale.export.graph_builder import add_output, finish, new_builder
        from nextscale.export.sampling_graph import sample

        builder = new_builder("sampler")
        inputs = [
            builder.input(name, ir.DataType.from_numpy(value.dtype), value.shape) for name, value in self.feeds.items()
        ]
        add_output(builder, sample(builder.op, *inputs), "tokens", ir.DataType.INT64, self.feeds["uniforms"].shape)
        return ir.to_proto(finish(builder)).SerializeToString()


def sampling(tokens: int) -> Case:
    """The tokens of one image, filtered as by default, of logits with the spread of a trained model's."""
    case = Case(f"Sample {tokens}x{ENTRIES}", 0, 1)
    rng = np.random.default_rng(0)
    logits = 2.5 * rng.standard_normal((1, tokens, ENTRIES))
    inputs = [
        case.fused.feed("logits", logits.astype(np.float32)),
        case.fused.feed("uniforms", rng.random((1, tokens), np.float32)),
        case.fused.feed("forced", np.full((1, tokens), -1)),
        case.fused.feed("top_k", np.array(900)),
        case.fused.feed("top_p", np.array(0.96, np.float32)),
    ]
    case.fused.outputs.append(case.fused.add("Sample", inputs, "tokens", domain="nextscale"))
    case.stock = Sampler(case.fused)
    return case


def cases(tokens: int) -> Iterator[Callable[[], Case]]:
    """All cases of a stage with so many tokens."""
    for make in (pair_linear, image_linear):
        for k, n, epilogue in (
            (WIDTH, WIDTH, "plain"),
            (WIDTH, WIDTH, "residual"),
            (WIDTH, HIDDEN, "gelu"),
            (HIDDEN, WIDTH, "residual"),
        ):
            yield lambda make=make, k=k, n=n, epilogue=epilogue: make(tokens, k, n, epilogue, 4)  # type: ignore[misc]
    for ranges in ("pair", "image"):
        yield lambda ranges=ranges: norm(tokens, ranges, 4)  # type: ignore[misc]
    for ranges in ("none", "pair"):
        yield lambda ranges=ranges: attention(tokens, ranges, 1)  # type: ignore[misc]
    for attentive in (False, True):
        for weights in ("row", "log2"):
            yield lambda weights=weights, attentive=attentive: integer_attention(tokens, weights, attentive)  # type: ignore[misc]
    yield lambda: sampling(tokens)


def available(library: Path, isas: Sequence[str]) -> list[str]:
    """Those of `isas` that this processor has."""
    of_library = ctypes.CDLL(str(library)).nextscale_ops_isa
    of_library.restype = ctypes.c_char_p
    found = []
    for isa in isas:
        os.environ["NEXTSCALE_OPS_ISA"] = isa
        if of_library():
            found.append(isa)
    return found


def runner(graph: Graph, threads: int, library: Path) -> Callable[[], Any]:
    """A run of the graph in a session of its own, without copies of what goes in and out."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(graph.serialized(), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in graph.feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    for result in session.get_outputs():
        binding.bind_output(result.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def measured(contenders: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Times in ms of interleaved runs."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    end = time.perf_counter() + seconds
    while len(times["stock"]) < 5 or time.perf_counter() < end:
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def header() -> list[str]:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    cpu, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                cpu = value.strip()
            if name.strip() == "flags":
                known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
                flags = ", ".join(flag for flag in known if flag in value.split())
    return [
        f"- command: `python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}`",
        f"- commit: {described.stdout.strip() or 'unknown'}",
        f"- machine: {cpu}, {os.cpu_count()} logical CPUs, {flags}, {platform.system()}",
        f"- onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, python {platform.python_version()}",
        "",
        "Times are minimum / median in ms of one layer; the ratio is stock over fused, of the minima.",
        "",
        "| case | threads | contender | min | median | ratio | GOP/s |",
        "|---|---|---|---|---|---|---|",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", type=Path, required=True, help="libnextscale_ops")
    parser.add_argument("--before", type=Path, help="an older build, which runs beside it")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="of a row")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isas", nargs="+", default=ISAS[:-1], help="taken if the processor has them")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a case")
    settings = parser.parse_args()
    libraries = {"": settings.library.resolve()}
    if settings.before:
        libraries[", before"] = settings.before.resolve()
    isas = available(libraries[""], settings.isas)
    print("\n".join(header()))
    for threads in settings.threads:
        for tokens in settings.tokens:
            for make in cases(tokens):
                case = make()
                if settings.only not in case.name:
                    continue
                contenders = {"stock": runner(case.stock, threads, libraries[""])}
                for isa in isas:
                    os.environ["NEXTSCALE_OPS_ISA"] = isa
                    for which, library in libraries.items():
                        contenders[isa + which] = runner(case.fused, threads, library)
                times = measured(contenders, settings.seconds)
                for name, found in times.items():
                    least, middle = min(found) / case.layers, statistics.median(found) / case.layers
                    rate = f"{case.operations / least / 1e6:.0f}" if case.operations else ""
                    ratio = min(times["stock"]) / min(found)
                    print(
                        f"| {case.name} | {threads} | {name} | {least:.3f} | {middle:.3f} | {ratio:.2f} | {rate} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
