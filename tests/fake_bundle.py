"""A bundle that honours the whole contract with a model of a few hundred numbers, written in ONNX's text form.

The model means nothing, but every part of the contract matters in it: the picture depends on the class, the
uniforms, the forced tokens, guidance, both filters, the cache, the modulation and f_hat. Both forms of the graph call
one function, `Stage`, so their tokens are equal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

NUM_CLASSES, V, C, CVAE = 5, 16, 8, 2
PATCH_NUMS = (1, 2, 3)
L, LATENT, PIXELS = sum(pn * pn for pn in PATCH_NUMS), PATCH_NUMS[-1], 12
CLASS_NAMES = ["goldfish, Carassius auratus", "tabby cat", "crane", "crane", "golden retriever"]

_REQUEST = """int64[B] class_labels, float[B,14] uniforms, int64[B,14] forced_tokens,
    float cfg_scale, int64 top_k, float top_p"""
_TABLES = "class_table, position_table, codebook, latent_in, head"
_SIX = "class_labels, uniforms, forced_tokens, cfg_scale, top_k, top_p"

# The last layer of a decoder, of both fake bundles: [B, 2, h, w] to uint8 [B, 4 h, 4 w, 3].
DECODE = """
<domain: "fake", opset_import: ["" : 21]>
Decode (f_hat, to_rgb) => (images)
{
    scales = Constant<value_floats = [1.0, 1.0, 4.0, 4.0]>()
    large = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
        (f_hat, , scales)
    last = Transpose<perm = [0, 2, 3, 1]>(large)
    rgb = MatMul(last, to_rgb)
    low = Constant<value = float {0.0}>()
    high = Constant<value = float {255.0}>()
    clipped = Clip(rgb, low, high)
    rounded = Round(clipped)
    images = Cast<to = 2>(rounded)
}
"""
FUNCTIONS = """
<domain: "fake", opset_import: ["" : 21]>
Stage (class_labels, uniforms, forced_tokens, cfg_scale, top_k, top_p, stage, f_hat, modulation, key, value,
       class_table, position_table, codebook, latent_in, head)
    => (tokens, logits, next_f_hat, next_modulation, next_key, next_value)
{
    zero = Constant<value = int64 {0}>()
    one = Constant<value_ints = [1]>()
    last = Constant<value_ints = [-1]>()
    patch_nums = Constant<value_ints = [1, 2, 3]>()
    begins = Constant<value_ints = [0, 1, 5]>()
    pn = Gather(patch_nums, stage)
    length = Mul(pn, pn)
    begin0 = Gather(begins, stage)
    begin = Unsqueeze(begin0, zero)
    length1 = Unsqueeze(length, zero)
    end = Add(begin, length1)
    u0 = Slice(uniforms, begin, end, one)
    u = Unsqueeze(u0, last)
    forced = Slice(forced_tokens, begin, end, one)
    zero1 = Constant<value_ints = [0]>()
    position = Slice(position_table, begin, end, zero1)
    null = Constant<value = int64 {5}>()
    times_zero = Mul(class_labels, zero)
    null_labels = Add(times_zero, null)
    labels = Concat<axis = 0>(class_labels, null_labels)
    h = Gather(class_table, labels)
    next_modulation = Unsqueeze(h, one)
    spatial = Constant<value_ints = [2, 3]>()
    mean = ReduceMean<keepdims = 0>(f_hat, spatial)
    latent = MatMul(mean, latent_in)
    latent2 = Concat<axis = 0>(latent, latent)
    latent3 = Unsqueeze(latent2, one)
    x0 = Add(next_modulation, position)
    x = Add(x0, latent3)
    x4 = Unsqueeze(x, one)
    x_t = Transpose<perm = [0, 1, 3, 2]>(x4)
    next_key = Concat<axis = 3>(key, x_t)
    next_value = Concat<axis = 2>(value, x4)
    scores = MatMul(x4, next_key)
    attention = Softmax(scores)
    attended = MatMul(attention, next_value)
    y4 = Add(attended, x4)
    y = Squeeze(y4, one)
    both = MatMul(y, head)
    conditional, unconditional = Split<num_outputs = 2>(both)
    stage_f = Cast<to = 1>(stage)
    two = Constant<value = float {2.0}>()
    progress = Div(stage_f, two)
    t = Mul(cfg_scale, progress)
    one_f = Constant<value = float {1.0}>()
    t1 = Add(t, one_f)
    plus = Mul(t1, conditional)
    minus = Mul(t, unconditional)
    logits = Sub(plus, minus)
    no_top_k = Equal(top_k, zero)
    entries = Constant<value = int64 {16}>()
    k0 = Where(no_top_k, entries, top_k)
    k = Unsqueeze(k0, zero)
    best, best_index = TopK(logits, k)
    threshold = ReduceMin(best, last)
    in_top_k = GreaterOrEqual(logits, threshold)
    nothing = Constant<value = float {-1e30}>()
    masked = Where(in_top_k, logits, nothing)
    p = Softmax(masked)
    p_row = Unsqueeze(p, last)
    minus_two = Constant<value_ints = [-2]>()
    p_column = Unsqueeze(p, minus_two)
    better = Greater(p_column, p_row)
    better_f = Cast<to = 1>(better)
    better_p = Mul(better_f, p_column)
    mass = ReduceSum<keepdims = 0>(better_p, last)
    in_top_p0 = Less(mass, top_p)
    zero_f = Constant<value = float {0.0}>()
    no_top_p = Equal(top_p, zero_f)
    in_top_p = Or(in_top_p0, no_top_p)
    kept = And(in_top_k, in_top_p)
    kept_p = Where(kept, p, zero_f)
    axis = Constant<value = int64 {-1}>()
    cumulative = CumSum(kept_p, axis)
    total = ReduceSum(kept_p, last)
    target = Mul(u, total)
    passed = Greater(cumulative, target)
    passed_i = Cast<to = 6>(passed)
    first_passed = ArgMax<axis = -1, keepdims = 0>(passed_i)
    any_passed_i = ReduceMax<keepdims = 0>(passed_i, last)
    any_passed = Cast<to = 9>(any_passed_i)
    kept_i = Cast<to = 6>(kept)
    last_kept = ArgMax<axis = -1, keepdims = 0, select_last_index = 1>(kept_i)
    sampled = Where(any_passed, first_passed, last_kept)
    is_forced = GreaterOrEqual(forced, zero)
    tokens = Where(is_forced, forced, sampled)
    vectors = Gather(codebook, tokens)
    channels_first = Transpose<perm = [0, 2, 1]>(vectors)
    pn1 = Unsqueeze(pn, zero)
    leading = Constant<value_ints = [0, 2]>()
    map_shape = Concat<axis = 0>(leading, pn1, pn1)
    map = Reshape(channels_first, map_shape)
    shape = Shape(f_hat)
    upsampled = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
        (map, , , shape)
    next_f_hat = Add(f_hat, upsampled)
}
"""
HEADER = '<ir_version: 10, opset_import: ["" : 21, "fake" : 1]>'

GRAPHS = {
    "generate": f"""{HEADER} generate ({_REQUEST}) => (uint8[B,12,12,3] images, int64[B,14] token_maps) {{
    rows = Shape(class_labels)
    rows2 = Add(rows, rows)
    zero1 = Constant<value_ints = [0]>()
    one1 = Constant<value_ints = [1]>()
    width = Constant<value_ints = [8]>()
    latent = Constant<value_ints = [2, 3, 3]>()
    f_hat_shape = Concat<axis = 0>(rows, latent)
    modulation_shape = Concat<axis = 0>(rows2, zero1, width)
    key_shape = Concat<axis = 0>(rows2, one1, width, zero1)
    value_shape = Concat<axis = 0>(rows2, one1, zero1, width)
    f0 = ConstantOfShape(f_hat_shape)
    m0 = ConstantOfShape(modulation_shape)
    k0 = ConstantOfShape(key_shape)
    v0 = ConstantOfShape(value_shape)
    s0 = Constant<value = int64 {{0}}>()
    s1 = Constant<value = int64 {{1}}>()
    s2 = Constant<value = int64 {{2}}>()
    t0, l0, f1, m1, k1, v1 = fake.Stage({_SIX}, s0, f0, m0, k0, v0, {_TABLES})
    t1, l1, f2, m2, k2, v2 = fake.Stage({_SIX}, s1, f1, m1, k1, v1, {_TABLES})
    t2, l2, f3, m3, k3, v3 = fake.Stage({_SIX}, s2, f2, m2, k2, v2, {_TABLES})
    token_maps = Concat<axis = 1>(t0, t1, t2)
    images = fake.Decode(f3, to_rgb)
}}""",
    "stage": f"""{HEADER} stage ({_REQUEST}, int64 stage, float[B,2,3,3] f_hat, float[R,M,8] modulation,
    float[R,1,8,T] past_key_values_0_key, float[R,1,T,8] past_key_values_0_value) => (int64[B,l] tokens,
    float[B,l,16] logits, float[B,2,3,3] present_f_hat, float[R,N,8] present_modulation,
    float[R,1,8,U] present_0_key, float[R,1,U,8] present_0_value) {{
    tokens, logits, present_f_hat, present_modulation, present_0_key, present_0_value = fake.Stage({_SIX}, stage,
        f_hat, modulation, past_key_values_0_key, past_key_values_0_value, {_TABLES})
}}""",
    "decoder": f"""{HEADER} decoder (float[B,2,3,3] f_hat) => (uint8[B,12,12,3] images) {{
    images = fake.Decode(f_hat, to_rgb)
}}""",
}
# Sums of a picture's numbers in whole weights, which every release of ONNX Runtime adds up to the same tokens.
ENCODER = f"""{HEADER} encoder (uint8[B,12,12,3] images) => (int64[B,14] token_maps) {{
    numbers = Cast<to = 1>(images)
    row = Constant<value_ints = [0, -1]>()
    rows = Reshape(numbers, row)
    sums = MatMul(rows, to_tokens)
    whole = Cast<to = 7>(sums)
    entries = Constant<value = int64 {{16}}>()
    token_maps = Mod(whole, entries)
}}"""
# What a bundle with more_smooth has further: here its numbers raise all of a stage's vectors by the same.
SMOOTH_INPUT = {"name": "smooth_uniforms", "kind": "smooth_uniform", "dtype": "float32", "shape": ["B", L, V]}
_SMOOTH = {
    _REQUEST: f"{_REQUEST}, float[B,N,16] smooth_uniforms",
    f"{_SIX}, s": f"{_SIX}, smooth_uniforms, s",
    "    vectors = Gather(codebook, tokens)": """    noise = Slice(smooth_uniforms, begin, end, one)
    mixed = MatMul(noise, codebook)
    raised = ReduceSum(mixed, one)
    chosen = Gather(codebook, tokens)
    vectors = Add(chosen, raised)""",
}
# The text form has no dots in names.
_DOTTED = {
    "past_key_values_0_key": "past_key_values.0.key",
    "past_key_values_0_value": "past_key_values.0.value",
    "present_f_hat": "present.f_hat",
    "present_seen": "present.seen",
    "present_modulation": "present.modulation",
    "present_0_key": "present.0.key",
    "present_0_value": "present.0.value",
}


# What schema 2 says of the request, and schema 1 means.
REQUEST = [
    {"name": "class_labels", "kind": "label", "dtype": "int64", "shape": ["B"]},
    {"name": "uniforms", "kind": "uniform", "dtype": "float32", "shape": ["B", L]},
    {"name": "forced_tokens", "kind": "forced_tokens", "dtype": "int64", "shape": ["B", L]},
    {"name": "cfg_scale", "kind": "scalar", "dtype": "float32", "shape": [], "default": 4.0, "minimum": 0,
     "maximum": None},
    {"name": "top_k", "kind": "scalar", "dtype": "int64", "shape": [], "default": V, "minimum": 0, "maximum": V},
    {"name": "top_p", "kind": "scalar", "dtype": "float32", "shape": [], "default": 0.96, "minimum": 0, "maximum": 1},
]  # fmt: skip


def write_fake_bundle(
    folder: Path,
    seed: int = 0,
    class_names: list[str] | None = CLASS_NAMES,
    schema: int = 2,
    *,
    encoder: bool = False,
    smooth: bool = False,
) -> Path:
    """Write a bundle whose weights come from a seed; its verify tokens are what it generates."""
    weights = fake_weights(seed, encoder=encoder)
    texts = graph_texts(encoder=encoder, smooth=smooth)
    graphs = write_files(folder, texts, weights)
    graphs["stage"]["state"] = [
        {"input": name, "output": f"present.{name.removeprefix('past_key_values.')}", "dtype": "float32",
         "initial_shape": shape}
        for name, shape in {
            "f_hat": ["B", CVAE, LATENT, LATENT],
            "modulation": ["2B", 0, C],
            "past_key_values.0.key": ["2B", 1, C, 0],
            "past_key_values.0.value": ["2B", 1, 0, C],
        }.items()
    ]  # fmt: skip
    manifest = {
        "schema": 2,
        "family": "var",
        "name": f"fake-{seed}",
        "model": {
            "num_classes": NUM_CLASSES, "stage_sizes": [[pn, pn] for pn in PATCH_NUMS], "image_size": [PIXELS, PIXELS],
            "vocab_size": V, "depth": 1, "embed_dim": C, "num_heads": 1, "latent_channels": CVAE,
            "latent_size": [LATENT, LATENT],
        },
        "recipe": {"name": "fp32"},
        "class_names": class_names,
        "request": [*REQUEST, *([SMOOTH_INPUT] if smooth else [])],
        "graphs": graphs,
        "files": {path.name: file_entry(path) for path in sorted(folder.iterdir())},
        "verify": {
            "seed": 0,
            "inputs": {"class_labels": [0, 1], "cfg_scale": 1.5, "top_k": 1, "top_p": 0},
            "token_maps": [[0] * L, [0] * L],
        },
        "versions": {"nextscale": "0.1.0", "opset": 21},
        "licence": "MIT",
    }  # fmt: skip
    complete(folder, manifest)
    if schema == 1:
        write_manifest(folder, in_schema_1(read_manifest(folder)))
    return folder


def graph_texts(*, encoder: bool, smooth: bool) -> dict[str, str]:
    """The graphs of all roles, each with the functions that it calls."""
    texts = {role: text + FUNCTIONS + DECODE for role, text in GRAPHS.items()}
    if smooth:
        for old, new in _SMOOTH.items():
            texts = {role: text.replace(old, new) for role, text in texts.items()}
    return texts | ({"encoder": ENCODER + FUNCTIONS + DECODE} if encoder else {})


def in_schema_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same manifest as releases up to 0.1 wrote it."""
    model, verify = manifest["model"], manifest["verify"]
    others = {key: value for key, value in manifest.items() if key not in ("family", "request")}
    return {
        **others,
        "schema": 1,
        "model": {
            "num_classes": model["num_classes"],
            "patch_nums": [height for height, _ in model["stage_sizes"]],
            "image_size": model["image_size"][0],
            **{key: model[key] for key in ("vocab_size", "depth", "embed_dim", "num_heads", "latent_channels")},
            "latent_size": model["latent_size"][0],
        },
        "graphs": {
            role: {
                "file": graph["variants"]["stock"]["file"],
                **{key: value for key, value in graph.items() if key != "variants"},
            }
            for role, graph in manifest["graphs"].items()
        },
        "verify": {
            "class_labels": verify["inputs"]["class_labels"],
            "seed": verify["seed"],
            "cfg_scale": verify["inputs"]["cfg_scale"],
            "token_maps": verify["token_maps"],
        },
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


SHAPES = {
    "class_table": (NUM_CLASSES + 1, C), "position_table": (L, C), "codebook": (V, CVAE), "latent_in": (CVAE, C),
    "head": (C, V), "to_rgb": (CVAE, 3),
}  # fmt: skip


def fake_weights(seed: int, *, encoder: bool) -> dict[str, np.ndarray]:
    weights = weights_of_seed(SHAPES, seed)
    if encoder:
        weights["to_tokens"] = np.random.default_rng(seed).integers(0, V, (PIXELS * PIXELS * 3, L)).astype(np.float32)
    return weights


def weights_of_seed(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["to_rgb"] *= 60
    return weights


def write_files(folder: Path, graphs: dict[str, str], weights: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """All files of a bundle but the manifest; returns the manifest's graphs."""
    folder.mkdir(parents=True)
    (folder / "weights.data").write_bytes(b"".join(array.tobytes() for array in weights.values()))
    (folder / "card.md").write_text("A fake model for tests.\n")
    return {role: write_graph(folder / f"{role}.onnx", text, weights) for role, text in graphs.items()}


def complete(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the tokens that its verify request gives."""
    from nextscale.runtime import Generator
    from nextscale.runtime._probe_pictures import probe_pictures
    from nextscale.runtime._verify import stored_settings

    write_manifest(folder, manifest)
    verify, generator = manifest["verify"], Generator(folder)
    made = generator.generate(**stored_settings(generator.bundle.manifest))
    verify["token_maps"] = made.token_maps.reshape(len(made.token_maps), -1).tolist()
    if "encoder" in manifest["graphs"]:
        encoded = generator.encode(probe_pictures(made.images.shape[1:3], len(made.images)))
        verify["encoded"] = encoded.reshape(len(encoded), -1).tolist()
    write_manifest(folder, manifest)


def write_graph(path: Path, text: str, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """One graph over weights.data; returns what a manifest says of it."""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.input[:] = [_DOTTED.get(item, item) for item in node.input]
        node.output[:] = [_DOTTED.get(item, item) for item in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = _DOTTED.get(value.name, value.name)
    used = set(_inputs(model.graph))
    offset = 0
    for key, array in weights.items():
        if key in used:
            model.graph.initializer.append(_external(key, array, offset))
        offset += array.nbytes
    path.write_bytes(model.SerializeToString())
    return {
        "inputs": [_tensor(value) for value in model.graph.input],
        "outputs": [_tensor(value) for value in model.graph.output],
        "variants": {"stock": {"file": path.name}},
    }


def _inputs(graph: onnx.GraphProto) -> Iterator[str]:
    """What the nodes of a graph take, and those of the graphs within."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            yield from _inputs(attribute.g)


def _external(name: str, array: np.ndarray, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights.data", "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    shape = [{"R": "2B"}.get(dim.dim_param, dim.dim_param) or dim.dim_value for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return {"name": value.name, "dtype": dtype, "shape": shape}


def file_entry(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def in_download_cache(bundle: Path, cache: Path) -> Path:
    """The bundle as a download cache keeps it: files are named by their hashes, and a folder of links is the bundle."""
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for path in bundle.iterdir():
        name = hashlib.sha256(path.read_bytes()).hexdigest()
        (cache / "blobs" / name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / name)
    return snapshot
