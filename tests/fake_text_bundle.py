"""A bundle of what VAR does not have: no classes but text, tokens of bits, oblong stages, values for each stage.

It means nothing, like the other fake bundle, and honours the contract. Its stages carry bytes, as caches of 8 bits are,
besides the latent. It has no generate.onnx, a role that no reader knows, and a variant whose operators nobody has.
"""

from __future__ import annotations

from pathlib import Path

from fake_bundle import DECODE, HEADER, complete, file_entry, weights_of_seed, write_files

STAGE_SIZES = ((1, 1), (1, 2), (2, 3))
S, L, D, C, HEIGHT, WIDTH = 3, 9, 2, 8, 8, 12
TEXTS = [[[0.5 * (i + j - k) for k in range(C)] for j in range(3)] for i in range(2)]
MASKS = [[1, 1, 0], [1, 1, 1]]

GRAPHS = {
    "stage": f"""{HEADER} stage (float[B,Lt,8] text_features, int64[B,Lt] text_mask, float[B,9,2] uniforms,
    int64[B,9,2] forced_tokens, float[3] cfg_scale, float[3] tau, int64 stage, float[B,2,2,3] f_hat,
    uint8[B,T,2] seen) =>
    (int64[B,l,2] tokens, float[B,l,2] logits, float[B,2,2,3] present_f_hat, uint8[B,U,2] present_seen) {{
    zero = Constant<value = int64 {{0}}>()
    one = Constant<value_ints = [1]>()
    zero1 = Constant<value_ints = [0]>()
    last = Constant<value_ints = [-1]>()
    heights = Constant<value_ints = [1, 1, 2]>()
    widths = Constant<value_ints = [1, 2, 3]>()
    begins = Constant<value_ints = [0, 1, 3]>()
    stage1 = Unsqueeze(stage, zero)
    height = Gather(heights, stage1)
    width = Gather(widths, stage1)
    begin = Gather(begins, stage1)
    length = Mul(height, width)
    end = Add(begin, length)
    u = Slice(uniforms, begin, end, one)
    forced = Slice(forced_tokens, begin, end, one)
    position = Slice(position_table, begin, end, zero1)
    mask_f = Cast<to = 1>(text_mask)
    mask = Unsqueeze(mask_f, last)
    masked = Mul(text_features, mask)
    text = ReduceSum(masked, one)
    spatial = Constant<value_ints = [2, 3]>()
    mean = ReduceMean<keepdims = 0>(f_hat, spatial)
    latent0 = MatMul(mean, latent_in)
    latent = Unsqueeze(latent0, one)
    without = Add(latent, position)
    with = Add(without, text)
    h0 = Tanh(without)
    h1 = Tanh(with)
    unconditional = MatMul(h0, head)
    conditional = MatMul(h1, head)
    difference = Sub(conditional, unconditional)
    guidance = Gather(cfg_scale, stage)
    guided = Mul(guidance, difference)
    sum = Add(unconditional, guided)
    temperature = Gather(tau, stage)
    logits = Div(sum, temperature)
    minus = Neg(logits)
    p0 = Sigmoid(minus)
    is_one = GreaterOrEqual(u, p0)
    sampled = Cast<to = 7>(is_one)
    is_forced = GreaterOrEqual(forced, zero)
    tokens = Where(is_forced, forced, sampled)
    bits = Cast<to = 1>(tokens)
    twice = Add(bits, bits)
    one_f = Constant<value = float {{1.0}}>()
    codes = Sub(twice, one_f)
    channels_first = Transpose<perm = [0, 2, 1]>(codes)
    leading = Constant<value_ints = [0, 2]>()
    map_shape = Concat<axis = 0>(leading, height, width)
    map = Reshape(channels_first, map_shape)
    shape = Shape(f_hat)
    upsampled = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
        (map, , , shape)
    token_bytes = Cast<to = 2>(tokens)
    present_seen = Concat<axis = 1>(seen, token_bytes)
    seen_f = Cast<to = 1>(present_seen)
    share = ReduceMean<keepdims = 0>(seen_f, one)
    shares = Unsqueeze(share, spatial)
    accumulated = Add(f_hat, upsampled)
    present_f_hat = Add(accumulated, shares)
}}""",
    "decoder": f"""{HEADER} decoder (float[B,2,2,3] f_hat) => (uint8[B,8,12,3] images) {{
    images = fake.Decode(f_hat, to_rgb)
}}""",
}


def write_fake_text_bundle(folder: Path, seed: int = 0) -> Path:
    """Write it; its verify tokens are what it generates."""
    shapes = {"position_table": (L, C), "latent_in": (2, C), "head": (C, D), "to_rgb": (2, 3)}
    graphs = write_files(folder, {role: text + DECODE for role, text in GRAPHS.items()}, weights_of_seed(shapes, seed))
    graphs["stage"]["state"] = [
        {"input": "f_hat", "output": "present.f_hat", "dtype": "float32", "initial_shape": ["B", 2, 2, 3]},
        {"input": "seen", "output": "present.seen", "dtype": "uint8", "initial_shape": ["B", 0, 2]},
    ]
    (folder / "stage.fused.onnx").write_text("for readers that have its operators")
    graphs["stage"]["variants"]["fused"] = {"file": "stage.fused.onnx", "operators": {"nextscale": 99}}
    graphs["soothsayer"] = {"variants": {"stock": {"file": "card.md"}}}
    scalar = {"kind": "scalar", "dtype": "float32", "shape": [S]}
    manifest = {
        "schema": 2,
        "family": "fake-text",
        "name": "fake-text",
        "model": {
            "num_classes": 0, "stage_sizes": STAGE_SIZES, "image_size": [HEIGHT, WIDTH], "vocab_size": 2, "depth": 1,
            "embed_dim": C, "num_heads": 1, "latent_channels": 2, "latent_size": [2, 3],
        },
        "recipe": {"name": "fp32"},
        "class_names": None,
        "request": [
            {"name": "text_features", "kind": "text_features", "dtype": "float32", "shape": ["B", "Lt", C]},
            {"name": "text_mask", "kind": "text_mask", "dtype": "int64", "shape": ["B", "Lt"]},
            {"name": "uniforms", "kind": "uniform", "dtype": "float32", "shape": ["B", L, D]},
            {"name": "forced_tokens", "kind": "forced_tokens", "dtype": "int64", "shape": ["B", L, D]},
            # Of an encoder: neither the stage graph nor what generates lists it.
            {"name": "picture", "kind": "image", "dtype": "uint8", "shape": ["B", 8, 8, 3]},
            {"name": "cfg_scale", **scalar, "default": [1.0, 2.0, 3.0], "minimum": 0},
            {"name": "tau", **scalar, "default": 1.0, "minimum": 0.0001, "maximum": 100},
        ],
        "graphs": graphs,
        "files": {path.name: file_entry(path) for path in sorted(folder.iterdir())},
        "verify": {
            "seed": 3,
            "inputs": {"text_features": TEXTS, "text_mask": MASKS, "cfg_scale": 3.0, "tau": [0.0001, 0.0001, 0.0001]},
            "token_maps": [[0] * (L * D)] * 2,
        },
        "versions": {"nextscale": "0.1.0", "opset": 21},
        "licence": "MIT",
    }  # fmt: skip
    complete(folder, manifest)
    return folder
