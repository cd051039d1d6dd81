"""What the goldens of Infinity are about: small models for every option, their weights and inputs, what is compared.

As in `parity.py`, weights and inputs come from NumPy's frozen `RandomState`, keyed by name. Results are condensed: of
what is large, the goldens hold a part of the tokens and channels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.models.infinity.multi_scale_bits import accumulate
from nextscale.models.infinity.reference import generate, guided_text
from nextscale.models.infinity.rope import RopeMode, rope_table
from nextscale.models.infinity.schedules import SCALES, Ratio, Size, make_size
from nextscale.models.infinity.transformer import Infinity, InfinityConfig

BATCH = 2
TEXT_LENGTHS, NEGATIVE_LENGTHS = (9, 4), (3, 6)
AREA = "0.06M"
STAGES = 7
ROPE_HEAD_DIM = 16
ROPE_MODES: tuple[RopeMode, ...] = (0, 1, 2)
# Logits whose rarer value is just below, at and above 1 - top_p, of either sign, and far from it.
SAMPLER_TOP_PS = (0.0, 0.1, 0.5, 0.8, 0.97, 1.0)
SAMPLER_DRAWS = 20_000


@dataclass(frozen=True)
class Guidance:
    """cfg_scale and tau of each stage, and whether a negative text is given."""

    cfg_scale: tuple[float, ...] = (3.0,) * STAGES
    tau: tuple[float, ...] = (1.0,) * STAGES
    negative: bool = False


@dataclass(frozen=True)
class Case:
    """A small Infinity, one size, and how it is guided; the options are those that differ from the first case."""

    name: str
    guidance: Guidance = Guidance()
    ratio: Ratio = (1, 1)
    options: dict = field(default_factory=dict)

    @property
    def config(self) -> InfinityConfig:
        options = {
            "depth": 4, "embed_dim": 64, "num_heads": 2, "hidden_dim": 256, "token_bits": 8, "text_channels": 256,
            "max_text": 12, "pool_heads": 2,
        }  # fmt: skip
        return InfinityConfig(**(options | self.options))

    @property
    def size(self) -> Size:
        return make_size(AREA, self.ratio, patchify=self.config.patchify)


LISTS = Guidance((1.0, 2.0, 3.0, 1.0, 4.0, 2.5, 1.5), (1.0, 0.5, 0.8, 1.0, 0.6, 1.2, 0.9))
CASES = (
    Case("infinity", Guidance(tau=(0.5,) * STAGES)),
    Case("infinity_unguided", Guidance(cfg_scale=(1.0,) * STAGES)),
    Case("infinity_lists", LISTS),
    Case("infinity_negative", Guidance(negative=True)),
    Case("infinity_negative_lists", Guidance(LISTS.cfg_scale, LISTS.tau, negative=True), (4, 3)),
    Case("infinity_patchify", ratio=(3, 4), options={"patchify": True}),
    Case("infinity_levels_of_chunks", options={"level_blocks": (0, 2)}),
    Case("infinity_rope_0", ratio=(4, 3), options={"rope_mode": 0}),
    Case("infinity_rope_1", ratio=(4, 3), options={"rope_mode": 1}),
)
CHUNKS = 2


def model_of(case: Case) -> Infinity:
    """A case's model with its random weights."""
    return model_of_state(case.config, random_state(case.config))


HEAD = ("head.weight", "head.bias")


def model_of_state(config: InfinityConfig, official: Mapping[str, torch.Tensor]) -> Infinity:
    """The model that has these weights, of whose head the rows 2j and 2j + 1 are bit j's two logits."""
    model = Infinity(config)
    model.load_state_dict({**official, **{name: official[name][1::2] - official[name][::2] for name in HEAD}})
    return model.eval().requires_grad_(False)


def random_state(config: InfinityConfig) -> dict[str, torch.Tensor]:
    """Weights for every tensor but the derived ones, with flat blocks and the official head of 2 D rows."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Infinity(config).state_dict().items()}
    shapes |= {name: (2 * config.token_bits, *shapes[name][1:]) for name in HEAD}
    return {name: torch.from_numpy(_random_tensor(name, shape)) for name, shape in shapes.items()}


def in_chunks(state: Mapping[str, torch.Tensor], blocks_in_chunk: int) -> dict[str, torch.Tensor]:
    """The same with the official names: block i is in a chunk."""

    def chunk(match: re.Match[str]) -> str:
        c, j = divmod(int(match[1]), blocks_in_chunk)
        return f"block_chunks.{c}.module.{j}."

    return {re.sub(r"^blocks\.(\d+)\.", chunk, name): tensor for name, tensor in state.items()}


def _random_tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith("scale_mul_1H11"):  # the last head is above the official maximum, log 100
        return np.linspace(1, 5, shape[1], dtype=np.float32).reshape(shape)
    normal = _random(name).standard_normal(shape)
    if "norm" in name and name.endswith("weight"):
        return (1 + 0.1 * normal).astype(np.float32)
    if name.endswith(("lvl_embed.weight", "pos_start", "ada_gss", "cfg_uncond", "ca.mat_q")):
        return (0.5 * normal).astype(np.float32)
    std = 0.1 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
    return (std * normal).astype(np.float32)


def _random(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()))


@dataclass(frozen=True)
class Inputs:
    """Texts as lists of [Lt, Ct], forced_bits int64 [B, L, D], latent float32 [B, c, H, W]."""

    texts: list[torch.Tensor]
    negatives: list[torch.Tensor]
    forced_bits: torch.Tensor
    latent: torch.Tensor


def random_inputs(case: Case) -> Inputs:
    """Inputs that depend on the configuration and the size only."""
    rng, config, size = _random("inputs"), case.config, case.size

    def texts(lengths: Sequence[int]) -> list[torch.Tensor]:
        drawn = [rng.standard_normal((length, config.text_channels)) for length in lengths]
        return [torch.from_numpy(text.astype(np.float32)) for text in drawn]

    latent = rng.standard_normal((BATCH, config.latent_channels, *size.latent_size)).astype(np.float32)
    return Inputs(
        texts=texts(TEXT_LENGTHS),
        negatives=texts(NEGATIVE_LENGTHS),
        forced_bits=torch.from_numpy(rng.randint(0, 2, (BATCH, size.num_tokens, config.token_bits))),
        latent=torch.from_numpy(latent),
    )


def padded(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts in one tensor [B, Lt, Ct], whose ends are filled with large numbers, and their mask."""
    longest = max(map(len, texts))
    features = torch.full((len(texts), longest, texts[0].shape[1]), 1e3)
    mask = torch.zeros(len(texts), longest, dtype=torch.int64)
    for row, text in enumerate(texts):
        features[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return features, mask


def measure(model: Infinity, case: Case, inputs: Inputs) -> dict[str, NDArray]:
    """Our side of a comparison; `make_infinity_goldens.OfficialInfinity.measure` is the other.

    Returns:
        log_odds (guided), block_{i} (each block's output) and inputs (all condensed), and f_hat [B, c, H, W], of the
        forced bits; greedy_bits [B, L, D]; cond [2B, C], normed_text and projected_text (condensed,
        valid tokens of all rows one after the other). Without guidance the second B rows are left out.
    """
    size, config = case.size, case.config
    features, text_mask = padded(inputs.texts)
    negative = padded(inputs.negatives) if case.guidance.negative else (None, None)
    settings = {
        "text_mask": text_mask, "negative_features": negative[0], "negative_mask": negative[1],
        "cfg_scale": case.guidance.cfg_scale, "tau": case.guidance.tau,
    }  # fmt: skip
    uniforms = torch.zeros(BATCH, size.num_tokens, config.token_bits)
    states: dict[int, list[torch.Tensor]] = {i: [] for i in range(config.depth)}
    hooks = [
        block.register_forward_hook(lambda _, arguments, output, i=i: states[i].append(output))
        for i, block in enumerate(model.blocks)
    ]
    forced = generate(model, size, features, uniforms, inputs.forced_bits, **settings)
    for hook in hooks:
        hook.remove()
    greedy = generate(model, size, features, uniforms, top_p=1e-6, **settings)
    _, next_inputs = accumulate(inputs.forced_bits.split(size.stage_tokens, dim=1), size)

    rows = slice(BATCH if set(case.guidance.cfg_scale) == {1.0} else 2 * BATCH)
    both, mask = (both[rows] for both in guided_text(model, features, text_mask, *negative))
    normed = model.text_norm(both)
    text = model.read_text(both, mask)
    results = {
        "log_odds": some_tokens(torch.cat(forced.guided_log_odds, dim=1)),
        "f_hat": forced.f_hat,
        "inputs": some_tokens(next_inputs),
        "greedy_bits": greedy.bits,
        "cond": text.cond,
        "normed_text": some_channels(normed[mask.bool()]),
        "projected_text": some_channels(model.text_proj_for_ca(normed)[mask.bool()]),
    } | {f"block_{i}": some_channels(some_tokens(torch.cat(found, dim=1)[rows])) for i, found in states.items()}
    return {name: tensor.numpy() for name, tensor in results.items()}


def some_tokens(x: torch.Tensor) -> torch.Tensor:
    """[B, L, C] -> fewer tokens, of every stage."""
    return x[:, ::3]


def some_channels(x: torch.Tensor) -> torch.Tensor:
    """[..., C] -> fewer channels."""
    return x[..., ::32]


def rope_sums(tables: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> NDArray[np.float32]:
    """Tables as sums over the tokens of a stage, weighted at random: of N cos and sin [l, d/2], float32 [N, 2, d/2].

    A token at another position changes the sums by about as much as the weights are large, 1.
    """
    rng, sums = _random("rope"), []
    for table in tables:
        both = torch.stack(table).double().numpy()
        sums.append(np.einsum("l,tlk->tk", rng.standard_normal(both.shape[1]), both))
    return np.array(sums, np.float32)


def our_rope_tables(mode: RopeMode) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of all stages of all ratios."""
    for ratio, scales in SCALES.items():
        for si in range(len(scales)):
            yield rope_table(ratio, si, ROPE_HEAD_DIM, mode)


def sampler_logits() -> NDArray[np.float32]:
    """Two logits a bit, [N, 2]: log-odds around each top_p's edge, of either sign, and others."""
    edges = [np.log((1 - top_p) / top_p) for top_p in SAMPLER_TOP_PS if 0 < top_p < 1]
    odds = [edge * near for edge in edges for near in (0.99, 0.999, 1.001, 1.01)]
    odds += [sign * odd for odd in (0.05, 0.5, 1.5, 4.0, 12.0) for sign in (-1, 1)]
    of_zero = _random("sampler").standard_normal(2 * len(odds))
    both = np.concatenate((odds, np.negative(odds)))
    return np.stack((of_zero, of_zero + both), axis=1).astype(np.float32)
