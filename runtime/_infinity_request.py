"""The request of the Infinity family: what its bundles are built with."""

from nextscale.runtime._manifest import BATCH, RequestInput
from nextscale.runtime._var_request import MAX_CFG_SCALE

# What the official notebooks draw with; `gen_one_img` has this top_p, whoever calls it.
DEFAULT_CFG_SCALE = 3.0
DEFAULT_TAU, DEFAULT_TAU_OF_PATCHES = 0.5, 1.0
DEFAULT_TOP_P = 0.97
# Log-odds of a sound model divided by the least stay finite in float32.
MIN_TAU, MAX_TAU = 1e-4, 100.0


def infinity_request(token_bits: int, text_channels: int, max_text: int, *, patchify: bool) -> tuple[RequestInput, ...]:
    """The ten inputs of a request to an Infinity.

    Args:
        token_bits: D, of a token.
        text_channels: of the text's features.
        max_text: tokens of what the model learned for no text, which takes the length of a text.
        patchify: whether a token is a patch of latents, as in the 8B release, which has another temperature.
    """
    bits = (BATCH, "L", token_bits)
    tau = DEFAULT_TAU_OF_PATCHES if patchify else DEFAULT_TAU
    return (
        RequestInput("size", "size", "int64", ()),
        RequestInput("text_features", "text_features", "float32", (BATCH, "Lt", text_channels), max_tokens=max_text),
        RequestInput("text_mask", "text_mask", "int64", (BATCH, "Lt")),
        RequestInput(
            "negative_features", "negative_features", "float32", (BATCH, "Ln", text_channels), max_tokens=max_text
        ),
        RequestInput("negative_mask", "negative_mask", "int64", (BATCH, "Ln")),
        RequestInput("uniforms", "uniform", "float32", bits),
        RequestInput("forced_bits", "forced_tokens", "int64", bits),
        RequestInput("cfg_scale", "scalar", "float32", ("S",), (DEFAULT_CFG_SCALE,), 0, MAX_CFG_SCALE),
        RequestInput("tau", "scalar", "float32", ("S",), (tau,), MIN_TAU, MAX_TAU),
        RequestInput("top_p", "scalar", "float32", (), (DEFAULT_TOP_P,), 0, 1),
    )
