"""A small segmentation model of OneFormer's forms: Swin windows of rank 4, attention of rank 3 with masks, a deformable
product by GridSample, and a mask head whose weights four readers share. Opset 20, pictures of 32 x 32 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, parser

from nextscale.paper.segmenter import CLASSES, MASKS, METADATA, PIXELS, TASK, TASKS

SIDE, WIDTH, HEADS, HIDDEN = 32, 8, 2, 16
GRID, WINDOWS, INSIDE, QUERIES, POINTS = 8, 16, 4, 5, 3
NAMES = ("cat", "dog", "sky")
INFO = {
    "tasks": {task: [1, 2, number, 0] for number, task in enumerate(TASKS, 3)},
    "classes": NAMES,
    "things": [0, 1],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "weights": "drawn",
}
LAYERS = 3
SWIN = ("window_mix",)
RANK_3 = tuple(f"{kind}{i}_mix" for i in range(LAYERS) for kind in ("cross", "self"))
DEFORMABLE = "deformable_softmax"
SHARED = ("m0", "m1", "m2")
BEHIND_GELU = "fc2"


def _windows() -> str:
    """From pixels to tokens [1, 64, 8] and a map [1, 8, 8, 8]."""
    return """
    patches = Conv <kernel_shape = [4, 4], strides = [4, 4]> (pixel_values, w_patch)
    cut = Reshape (patches, s_cut)
    turned = Transpose <perm = [0, 2, 4, 3, 5, 1]> (cut)
    inside = Reshape (turned, s_inside)
    wq0 = MatMul (inside, w_q)
    wk0 = MatMul (inside, w_k)
    wv0 = MatMul (inside, w_v)
    wq1 = Reshape (wq0, s_heads)
    wk1 = Reshape (wk0, s_heads)
    wv1 = Reshape (wv0, s_heads)
    wq = Transpose <perm = [0, 2, 1, 3]> (wq1)
    wk = Transpose <perm = [0, 2, 3, 1]> (wk1)
    wv = Transpose <perm = [0, 2, 1, 3]> (wv1)
    window_scores = MatMul (wq, wk)
    scaled = Div (window_scores, root)
    placed = Add (scaled, position)
    shifted = Add (placed, shift)
    window_weights = Softmax <axis = -1> (shifted)
    window_mix = MatMul (window_weights, wv)
    wm0 = Transpose <perm = [0, 2, 1, 3]> (window_mix)
    wm1 = Reshape (wm0, s_inside)
    wo = MatMul (wm1, w_o)
    seen = Add (inside, wo)
    fc1 = MatMul (seen, w_1)
    fc1b = Add (fc1, b_1)
    gelu = Gelu (fc1b)
    fc2 = MatMul (gelu, w_2)
    made = Add (seen, fc2)
    back0 = Reshape (made, s_turned)
    back1 = Transpose <perm = [0, 5, 1, 3, 2, 4]> (back0)
    map = Reshape (back1, s_map)
    """


def _deformable() -> str:
    """The map sampled where it says itself, and mixed by weights that no product reads."""
    return """
    flat0 = Reshape (map, s_flat)
    flat = Transpose <perm = [0, 2, 1]> (flat0)
    offsets0 = MatMul (flat, w_offsets)
    offsets1 = Tanh (offsets0)
    offsets = Reshape (offsets1, s_offsets)
    how0 = MatMul (flat, w_how)
    deformable_softmax = Softmax <axis = -1> (how0)
    how = Reshape (deformable_softmax, s_how)
    sampled = GridSample <align_corners = 0, mode = "linear"> (map, offsets)
    weighed = Mul (sampled, how)
    mixed = ReduceSum <keepdims = 0> (weighed, last)
    mixed1 = Transpose <perm = [0, 2, 1]> (mixed)
    mixed2 = MatMul (mixed1, w_mixed)
    memory0 = Add (flat, mixed2)
    memory = Transpose <perm = [1, 0, 2]> (memory0)
    features0 = Transpose <perm = [0, 2, 1]> (memory0)
    features = Reshape (features0, s_map)
    """


def _attention(name: str, query: str, memory: str, mask: str | None) -> str:
    """Of [T', 1, 8] to [T, 1, 8], with heads as the first of three axes, behind it the sum of both."""
    masked = f"{name}_masked = Add ({name}_scores, {mask})" if mask else f"{name}_masked = Identity ({name}_scores)"
    return f"""
    {name}_q0 = MatMul ({query}, {name}_wq)
    {name}_k0 = MatMul ({memory}, {name}_wk)
    {name}_v0 = MatMul ({memory}, {name}_wv)
    {name}_q1 = Mul ({name}_q0, half)
    {name}_q2 = Reshape ({name}_q1, s_split)
    {name}_k2 = Reshape ({name}_k0, s_split)
    {name}_v2 = Reshape ({name}_v0, s_split)
    {name}_q = Transpose <perm = [1, 0, 2]> ({name}_q2)
    {name}_k = Transpose <perm = [1, 2, 0]> ({name}_k2)
    {name}_v = Transpose <perm = [1, 0, 2]> ({name}_v2)
    {name}_scores = MatMul ({name}_q, {name}_k)
    {masked}
    {name}_weights = Softmax <axis = -1> ({name}_masked)
    {name}_mix = MatMul ({name}_weights, {name}_v)
    {name}_m0 = Transpose <perm = [1, 0, 2]> ({name}_mix)
    {name}_m1 = Reshape ({name}_m0, s_joined)
    {name}_o = MatMul ({name}_m1, {name}_wo)
    {name}_out = Add ({query}, {name}_o)
    """


def _heads(i: int, queries: str) -> str:
    """Masks [1, 5, 8, 8] and what the next attention must not see, [1, 5, 64]."""
    return f"""
    h{i}_t = Transpose <perm = [1, 0, 2]> ({queries})
    h{i}_m0 = MatMul (h{i}_t, w_m0)
    h{i}_r0 = Relu (h{i}_m0)
    h{i}_m1 = MatMul (h{i}_r0, w_m1)
    h{i}_r1 = Relu (h{i}_m1)
    h{i}_m2 = MatMul (h{i}_r1, w_m2)
    h{i}_masks = Einsum <equation = "bqc,bchw->bqhw"> (h{i}_m2, features)
    h{i}_flat = Reshape (h{i}_masks, s_masked)
    h{i}_sure = Sigmoid (h{i}_flat)
    h{i}_hidden = Less (h{i}_sure, limit)
    h{i}_mask = Where (h{i}_hidden, least, nothing)
    """


def _text() -> str:
    parts = [
        f"g (float[1, 3, {SIDE}, {SIDE}] {PIXELS}, int64[1, 4] {TASK}) => "
        f"(float[1, {QUERIES}, {len(NAMES) + 1}] {CLASSES}, float[1, {QUERIES}, {GRID}, {GRID}] {MASKS}) {{",
        _windows(),
        _deformable(),
        f"asked0 = Cast <to = 1> ({TASK})\n asked1 = MatMul (asked0, w_task)\n asked = Reshape (asked1, s_asked)",
        "queries = Add (w_queries, asked)",
        _heads(0, "queries"),
    ]
    queries = "queries"
    for i in range(LAYERS):
        parts += [
            _attention(f"cross{i}", queries, "memory", f"h{i}_mask"),
            _attention(f"self{i}", f"cross{i}_out", f"cross{i}_out", None),
        ]
        queries = f"self{i}_out"
        parts.append(_heads(i + 1, queries))
    parts.append(f"{CLASSES} = MatMul (h{LAYERS}_t, w_class)\n {MASKS} = Identity (h{LAYERS}_masks)\n}}")
    return "\n".join(parts)


def _constants(seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, gain: float = 1.0) -> NDArray[np.float32]:
        return (gain * rng.normal(size=shape) * shape[0] ** -0.5).astype(np.float32)

    shape = np.array
    half = GRID // 2
    shifted = np.where(rng.random((WINDOWS, 1, INSIDE, INSIDE)) < 0.2, -100, 0).astype(np.float32)
    shifted[..., range(INSIDE), range(INSIDE)] = 0
    found: dict[str, NDArray[Any]] = {
        "w_patch": (rng.normal(size=(WIDTH, 3, 4, 4)) / 7).astype(np.float32),
        **{f"w_{name}": normal(WIDTH, WIDTH) for name in ("q", "k", "v", "o", "mixed", *SHARED)},
        "w_1": normal(WIDTH, HIDDEN), "b_1": normal(HIDDEN), "w_2": normal(HIDDEN, WIDTH),
        "w_offsets": normal(WIDTH, 2 * POINTS), "w_how": normal(WIDTH, POINTS, gain=3),
        "w_task": normal(4, WIDTH), "w_queries": rng.normal(size=(QUERIES, 1, WIDTH)).astype(np.float32),
        "w_class": normal(WIDTH, len(NAMES) + 1, gain=3),
        **{f"{of[:-4]}_w{part}": normal(WIDTH, WIDTH) for of in RANK_3 for part in "qkvo"},
        "root": np.float32(2), "half": np.float32(0.5), "limit": np.float32(0.5),
        "position": rng.normal(size=(1, HEADS, INSIDE, INSIDE)).astype(np.float32), "shift": shifted,
        "least": np.float32(-1e9), "nothing": np.float32(0), "last": shape([3]),
        "s_cut": shape([1, WIDTH, half, 2, half, 2]), "s_inside": shape([WINDOWS, INSIDE, WIDTH]),
        "s_heads": shape([WINDOWS, INSIDE, HEADS, WIDTH // HEADS]), "s_turned": shape([1, half, half, 2, 2, WIDTH]),
        "s_map": shape([1, WIDTH, GRID, GRID]), "s_flat": shape([1, WIDTH, GRID**2]),
        "s_offsets": shape([1, GRID**2, POINTS, 2]), "s_how": shape([1, 1, GRID**2, POINTS]),
        "s_split": shape([-1, HEADS, WIDTH // HEADS]), "s_joined": shape([-1, 1, WIDTH]),
        "s_asked": shape([1, 1, WIDTH]), "s_masked": shape([1, QUERIES, GRID**2]),
    }  # fmt: skip
    return found


def segmenter_proto(seed: int = 0, **changes: Any) -> onnx.ModelProto:
    """The model; `changes` are of its metadata, where None leaves out a key."""
    graph = parser.parse_graph(_text())
    for name, array in _constants(seed).items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for node in graph.node:
        node.name = node.output[0]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    told = {key: value for key, value in {**INFO, **changes}.items() if value is not None}
    helper.set_model_props(model, {METADATA: json.dumps(told)})
    return model


def segmenter_model(seed: int = 0) -> ir.Model:
    return ir.from_proto(segmenter_proto(seed))


def write_segmenter(path: Path, seed: int = 0, **changes: Any) -> Path:
    onnx.save(segmenter_proto(seed, **changes), path)
    return path


def segmenter_samples(count: int = 6, seed: int = 1) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    tasks = [INFO["tasks"][TASKS[i % len(TASKS)]] for i in range(count)]  # type: ignore[index]
    return {PIXELS: rng.normal(size=(count, 3, SIDE, SIDE)).astype(np.float32), TASK: np.array(tasks)}
