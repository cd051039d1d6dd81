"""The request of the VAR family: what its bundles are built with, and what schema 1 means without saying so."""

from nextscale.runtime._manifest import BATCH, ModelInfo, RequestInput

DEFAULT_CFG_SCALE = 4.0
# Far above any use; logits of a sound model times this stay finite in float32.
MAX_CFG_SCALE = 1000.0
DEFAULT_TOP_K = 900
DEFAULT_TOP_P = 0.96


def var_request(model: ModelInfo) -> tuple[RequestInput, ...]:
    """The seven inputs of a request to a VAR of that size."""
    noise = RequestInput("smooth_uniforms", "smooth_uniform", "float32", (BATCH, model.num_tokens, model.vocab_size))
    return *schema_1_request(model), noise


def schema_1_request(model: ModelInfo) -> tuple[RequestInput, ...]:
    """The six that bundles have which were built before there was more_smooth."""
    tokens, entries = (BATCH, model.num_tokens), model.vocab_size
    return (
        RequestInput("class_labels", "label", "int64", (BATCH,)),
        RequestInput("uniforms", "uniform", "float32", tokens),
        RequestInput("forced_tokens", "forced_tokens", "int64", tokens),
        RequestInput("cfg_scale", "scalar", "float32", (), (DEFAULT_CFG_SCALE,), 0, MAX_CFG_SCALE),
        RequestInput("top_k", "scalar", "int64", (), (min(DEFAULT_TOP_K, entries),), 0, entries),
        RequestInput("top_p", "scalar", "float32", (), (DEFAULT_TOP_P,), 0, 1),
    )
