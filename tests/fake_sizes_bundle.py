"""A bundle of several sizes and of text: prompts through a text encoder, negative ones, bits, an encoder, one call.

It means nothing, like the other fake bundles, and honours the contract: what is drawn depends on the prompt, the
negative one, their masks, the size, guidance and temperature of each stage, the cache and f_hat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from fake_bundle import DECODE, HEADER, complete, file_entry, weights_of_seed, write_files

C, D, CVAE, MAX_TOKENS = 8, 2, 2, 40
VOCABULARY = 1000  # pieces of small.model; bytes take fewer
SMALL_MODEL = Path(__file__).parent / "goldens" / "small.model"
PIECES = "spiece.model"
# The first and the last are one list of stages, cut at two lengths.
SIZES = [
    {"area": "0.01M", "ratio": [1, 1], "image_size": [8, 8], "latent_size": [2, 2], "stage_sizes": [[1, 1], [2, 2]]},
    {"area": "0.01M", "ratio": [3, 2], "image_size": [12, 8], "latent_size": [3, 2],
     "stage_sizes": [[1, 1], [2, 1], [3, 2]]},
    {"area": "0.02M", "ratio": [1, 1], "image_size": [16, 16], "latent_size": [4, 4],
     "stage_sizes": [[1, 1], [2, 2], [4, 4]]},
]  # fmt: skip
LENGTHS = [5, 9, 21]
ROWS = 21  # of positions of one ratio
REQUEST = """float[B,Lt,8] text_features, int64[B,Lt] text_mask,
    float[B,Ln,8] negative_features, int64[B,Ln] negative_mask,
    float[B,L,2] uniforms, int64[B,L,2] forced_tokens, float[S] cfg_scale, float[S] tau, int64 size"""
_ASKED = "text_features, text_mask, negative_features, negative_mask, uniforms, forced_tokens, cfg_scale, tau, size"
_TABLES = "position_table, no_text, latent_in, head"

STAGE = """
<domain: "fake", opset_import: ["" : 21]>
Stage (text_features, text_mask, negative_features, negative_mask, uniforms, forced_tokens, cfg_scale, tau, size,
       stage, f_hat, modulation, key, value, position_table, no_text, latent_in, head)
    => (tokens, logits, next_f_hat, next_modulation, next_key, next_value)
{
    zero = Constant<value = int64 {0}>()
    one = Constant<value_ints = [1]>()
    last = Constant<value_ints = [-1]>()
    zero1 = Constant<value_ints = [0]>()
    three = Constant<value_ints = [3]>()
    ratios = Constant<value_ints = [0, 1, 0]>()
    heights = Constant<value_ints = [1, 2, 4, 1, 2, 3]>()
    widths = Constant<value_ints = [1, 2, 4, 1, 1, 2]>()
    begins = Constant<value_ints = [0, 1, 5, 0, 1, 3]>()
    rows = Constant<value_ints = [21]>()
    size1 = Unsqueeze(size, zero)
    ratio = Gather(ratios, size1)
    row0 = Mul(ratio, three)
    row = Add(row0, stage)
    height = Gather(heights, row)
    width = Gather(widths, row)
    begin = Gather(begins, row)
    length = Mul(height, width)
    end = Add(begin, length)
    u = Slice(uniforms, begin, end, one)
    forced = Slice(forced_tokens, begin, end, one)
    first_row = Mul(ratio, rows)
    from = Add(first_row, begin)
    to = Add(first_row, end)
    position = Slice(position_table, from, to, zero1)
    mask0 = Cast<to = 1>(text_mask)
    mask = Unsqueeze(mask0, last)
    masked = Mul(text_features, mask)
    text = ReduceSum(masked, one)
    negative_mask0 = Cast<to = 1>(negative_mask)
    negative_mask1 = Unsqueeze(negative_mask0, last)
    negative_masked = Mul(negative_features, negative_mask1)
    negative0 = ReduceSum(negative_masked, one)
    count = ReduceSum(negative_mask1, one)
    one_f = Constant<value = float {1.0}>()
    some = Min(count, one_f)
    none = Sub(one_f, some)
    learned = Mul(none, no_text)
    negative = Add(negative0, learned)
    both_texts = Concat<axis = 0>(text, negative)
    next_modulation = Tanh(both_texts)
    spatial = Constant<value_ints = [2, 3]>()
    mean = ReduceMean<keepdims = 0>(f_hat, spatial)
    latent0 = MatMul(mean, latent_in)
    latent1 = Concat<axis = 0>(latent0, latent0)
    latent = Unsqueeze(latent1, one)
    x0 = Add(next_modulation, position)
    x = Add(x0, latent)
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
    codes = Sub(twice, one_f)
    channels_first = Transpose<perm = [0, 2, 1]>(codes)
    leading = Constant<value_ints = [0, 2]>()
    map_shape = Concat<axis = 0>(leading, height, width)
    map = Reshape(channels_first, map_shape)
    shape = Shape(f_hat)
    upsampled = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">
        (map, , , shape)
    next_f_hat = Add(f_hat, upsampled)
}
"""
GRAPHS = {
    "generate": f"""{HEADER} generate ({REQUEST}) => (uint8[B,H,W,3] images, int64[B,L,2] token_maps) {{
    one = Constant<value_ints = [1]>()
    zero1 = Constant<value_ints = [0]>()
    channels = Constant<value_ints = [2]>()
    width = Constant<value_ints = [8]>()
    stages = Constant<value_ints = [2, 3, 3]>()
    latent_heights = Constant<value_ints = [2, 3, 4]>()
    latent_widths = Constant<value_ints = [2, 2, 4]>()
    zero = Constant<value = int64 {{0}}>()
    size1 = Unsqueeze(size, zero)
    rows = Shape<start = 0, end = 1>(text_features)
    rows2 = Add(rows, rows)
    height = Gather(latent_heights, size1)
    columns = Gather(latent_widths, size1)
    f_hat_shape = Concat<axis = 0>(rows, channels, height, columns)
    modulation_shape = Concat<axis = 0>(rows2, zero1, width)
    key_shape = Concat<axis = 0>(rows2, one, width, zero1)
    value_shape = Concat<axis = 0>(rows2, one, zero1, width)
    maps_shape = Concat<axis = 0>(rows, zero1, channels)
    f0 = ConstantOfShape(f_hat_shape)
    m0 = ConstantOfShape(modulation_shape)
    k0 = ConstantOfShape(key_shape)
    v0 = ConstantOfShape(value_shape)
    t0 = ConstantOfShape<value = int64[1] {{0}}>(maps_shape)
    trips = Gather(stages, size)
    f, m, k, v, token_maps = Loop(trips, , f0, m0, k0, v0, t0) <body = each (int64 stage, bool proceed,
        float[B,2,P,Q] f_in, float[R,M,8] m_in, float[R,1,8,T] k_in, float[R,1,T,8] v_in, int64[B,U,2] t_in) =>
        (bool go_on, float[B,2,P,Q] f_out, float[R,N,8] m_out, float[R,1,8,X] k_out, float[R,1,X,8] v_out,
         int64[B,Y,2] t_out) {{
        go_on = Identity(proceed)
        tokens, logits, f_out, m_out, k_out, v_out = fake.Stage({_ASKED}, stage, f_in, m_in, k_in, v_in, {_TABLES})
        t_out = Concat<axis = 1>(t_in, tokens)
    }}>
    images = fake.Decode(f, to_rgb)
}}""",
    "stage": f"""{HEADER} stage ({REQUEST}, int64 stage, float[B,2,h,w] f_hat, float[R,M,8] modulation,
    float[R,1,8,T] past_key_values_0_key, float[R,1,T,8] past_key_values_0_value) => (int64[B,l,2] tokens,
    float[B,l,2] logits, float[B,2,h,w] present_f_hat, float[R,N,8] present_modulation,
    float[R,1,8,U] present_0_key, float[R,1,U,8] present_0_value) {{
    tokens, logits, present_f_hat, present_modulation, present_0_key, present_0_value = fake.Stage({_ASKED}, stage,
        f_hat, modulation, past_key_values_0_key, past_key_values_0_value, {_TABLES})
}}""",
    "decoder": f"""{HEADER} decoder (float[B,2,h,w] f_hat) => (uint8[B,H,W,3] images) {{
    images = fake.Decode(f_hat, to_rgb)
}}""",
    # Whole numbers of all of a picture's pixels, by which a token's bits change with its place.
    "encoder": f"""{HEADER} encoder (uint8[B,H,W,3] images, int64 size) => (int64[B,L,2] token_maps) {{
    numbers = Cast<to = 7>(images)
    all = Constant<value_ints = [1, 2, 3]>()
    sums = ReduceSum<keepdims = 0>(numbers, all)
    last = Constant<value_ints = [-1]>()
    column = Unsqueeze(sums, last)
    lengths = Constant<value_ints = [5, 9, 21]>()
    length = Gather(lengths, size)
    zero = Constant<value = int64 {{0}}>()
    one = Constant<value = int64 {{1}}>()
    two = Constant<value = int64 {{2}}>()
    places = Range(zero, length, one)
    times = Add(places, one)
    product = Mul(column, times)
    moved = Add(product, places)
    cube = Unsqueeze(moved, last)
    divisors = Constant<value_ints = [3, 5]>()
    quotients = Div(cube, divisors)
    token_maps = Mod(quotients, two)
}}""",
    "text_encoder": f"""{HEADER} text_encoder (int64[B,N] token_ids) => (float[B,N,8] text_features) {{
    embedded = Gather(embedding, token_ids)
    one = Constant<value_ints = [1]>()
    mean = ReduceMean(embedded, one)
    text_features = Add(embedded, mean)
}}""",
}
SHAPES = {
    "position_table": (2 * ROWS, C), "no_text": (1, C), "latent_in": (CVAE, C), "head": (C, D), "to_rgb": (CVAE, 3),
    "embedding": (VOCABULARY, C),
}  # fmt: skip
_SCALAR = {"kind": "scalar", "dtype": "float32", "shape": ["S"]}
REQUEST_ENTRIES = [
    {"name": "text_features", "kind": "text_features", "dtype": "float32", "shape": ["B", "Lt", C],
     "max_tokens": MAX_TOKENS},
    {"name": "text_mask", "kind": "text_mask", "dtype": "int64", "shape": ["B", "Lt"]},
    {"name": "negative_features", "kind": "negative_features", "dtype": "float32", "shape": ["B", "Ln", C],
     "max_tokens": MAX_TOKENS},
    {"name": "negative_mask", "kind": "negative_mask", "dtype": "int64", "shape": ["B", "Ln"]},
    {"name": "uniforms", "kind": "uniform", "dtype": "float32", "shape": ["B", "L", D]},
    {"name": "forced_tokens", "kind": "forced_tokens", "dtype": "int64", "shape": ["B", "L", D]},
    {"name": "cfg_scale", **_SCALAR, "default": 3.0, "minimum": 0, "maximum": 1000.0},
    {"name": "tau", **_SCALAR, "default": 0.5, "minimum": 0.0001, "maximum": 100},
    {"name": "size", "kind": "size", "dtype": "int64", "shape": []},
]  # fmt: skip
STATE: dict[str, list[int | str]] = {
    "f_hat": ["B", CVAE, "h", "w"],
    "modulation": ["2B", 0, C],
    "past_key_values.0.key": ["2B", 1, C, 0],
    "past_key_values.0.value": ["2B", 1, 0, C],
}


def write_fake_sizes_bundle(folder: Path, seed: int = 0, *, text_encoder: bool = True, pieces: bool = False) -> Path:
    """Write it; its verify tokens are what it generates.

    Args:
        text_encoder: without it there is no tokenizer either, and verify has features of a formula.
        pieces: its tokenizer is SMALL_MODEL, and verify has features of a formula.
    """
    texts = {role: text + STAGE + DECODE for role, text in GRAPHS.items() if text_encoder or role != "text_encoder"}
    graphs = write_files(folder, texts, fake_sizes_weights(seed))
    graphs["stage"]["state"] = [
        {"input": name, "output": f"present.{name.removeprefix('past_key_values.')}", "dtype": "float32",
         "initial_shape": shape}
        for name, shape in STATE.items()
    ]  # fmt: skip
    tokenizer: dict[str, Any] = {"kind": "bytes", "max_tokens": MAX_TOKENS}
    if pieces:
        (folder / PIECES).write_bytes(SMALL_MODEL.read_bytes())
        tokenizer = {"kind": "sentencepiece", "file": PIECES, "max_tokens": MAX_TOKENS}
    prompts = text_encoder and not pieces
    text: dict[str, Any] = {"prompts": ["a fox", "two"]} if prompts else {"text_lengths": [4, 2]}
    manifest: dict[str, Any] = {
        "schema": 2,
        "family": "fake-sizes",
        "name": "fake-sizes",
        "model": {
            "num_classes": 0, "vocab_size": 2, "depth": 1, "embed_dim": C, "num_heads": 1, "latent_channels": CVAE,
            **{key: SIZES[0][key] for key in ("stage_sizes", "image_size", "latent_size")},
        },
        "sizes": SIZES,
        "recipe": {"name": "fp32"},
        "class_names": None,
        "request": REQUEST_ENTRIES,
        "graphs": graphs,
        **({"tokenizer": tokenizer} if text_encoder else {}),
        "files": {path.name: file_entry(path) for path in sorted(folder.iterdir())},
        "verify": {
            "seed": 3,
            "inputs": {"size": 1, "cfg_scale": 3.0, "tau": 0.0001},
            **text,
            "token_maps": [[0] * (LENGTHS[1] * D)] * 2,
        },
        "versions": {"nextscale": "0.1.0", "opset": 21},
        "licence": "MIT",
    }  # fmt: skip
    complete(folder, manifest)
    return folder


def fake_sizes_weights(seed: int) -> dict[str, np.ndarray]:
    """Small enough that bits are neither all alike nor all by chance."""
    weights = weights_of_seed(SHAPES, seed)
    weights["embedding"] *= np.float32(0.3)
    weights["head"] *= np.float32(0.1)
    return weights
