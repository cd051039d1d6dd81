"""What the goldens are about: small models for every option, their weights and inputs, and what is compared.

Weights and inputs come from NumPy's frozen `RandomState`, keyed by tensor name, so that the goldens need not hold them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nextscale.models.var.reference import generate
from nextscale.models.var.transformer import VAR, VARConfig
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig

GOLDENS = Path(__file__).parent
CFG_SCALE = 1.5
EDITS = "edits"
EDITED_CASES = ("base", "shared_aln", "phi_not_shared", "znorm", "patch_nums")
EDIT_CFG_SCALE = 3.0
# y0, x0, y1, x1 in shares of the picture, and whether the box is made anew (inpainting) or kept (outpainting).
EDIT_BOXES = (((0.1, 0.1, 0.8, 0.8), True), ((0.25, 0.5, 0.75, 1.0), True), ((0.3, 0.0, 0.9, 0.6), False))
# The goldens of more_smooth: f_hat of generations and of edits by the first box, by the names of the cases.
SMOOTH = "smooth"
SMOOTH_SEED = 5
SMOOTH_TOP_K, SMOOTH_TOP_P = 20, 0.9
BATCH = 2
# Buffers that follow from the configuration, absent from the random weights.
DERIVED = ("lvl_1L", "attn_bias_for_masking", "attn.zero_k_bias", "quantize.ema_vocab_hit_SV")


@dataclass(frozen=True)
class Case:
    """A small VAR and its VQVAE; the fields are the options that differ from the first case."""

    name: str
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5)
    vocab_size: int = 64
    z_channels: int = 8
    var_options: dict = field(default_factory=dict)
    vqvae_options: dict = field(default_factory=dict)

    @property
    def var(self) -> VARConfig:
        options = {"num_classes": 10, "depth": 2, "embed_dim": 128, "num_heads": 4} | self.var_options
        return VARConfig(**self._shared, **options)

    @property
    def vqvae(self) -> VQVAEConfig:
        return VQVAEConfig(**self._shared, **({"ch": 32, "ch_mult": (1, 1, 2)} | self.vqvae_options))

    @property
    def _shared(self) -> dict:
        return {"patch_nums": self.patch_nums, "vocab_size": self.vocab_size, "z_channels": self.z_channels}


CASES = (
    Case("base"),
    Case("no_l2_norm", var_options={"attn_l2_norm": False, "num_heads": 2}),
    Case("shared_aln", var_options={"shared_aln": True}),
    Case("shared_aln_no_l2_norm", var_options={"shared_aln": True, "attn_l2_norm": False, "num_heads": 2}),
    Case("phi_shared", vqvae_options={"share_quant_resi": 1}),
    Case("phi_partially_shared_3", vqvae_options={"share_quant_resi": 3}),
    Case("phi_not_shared", vqvae_options={"share_quant_resi": 0}),
    Case("phi_not_shared_count_3", vqvae_options={"share_quant_resi": 0, "default_qresi_counts": 3}),
    Case("no_phi", vqvae_options={"share_quant_resi": 1, "quant_resi": 0.0}),
    Case("phi_ratio", vqvae_options={"quant_resi": -0.3}),
    Case("znorm", vqvae_options={"using_znorm": True}),
    Case("patch_nums", patch_nums=(2, 3, 6), vqvae_options={"share_quant_resi": 0}),
    Case("classes_mlp_depth", var_options={"num_classes": 7, "mlp_ratio": 2.5, "depth": 3, "embed_dim": 96}),
    Case(
        "autoencoder",
        vocab_size=100,
        z_channels=4,
        vqvae_options={
            "ch": 64,
            "ch_mult": (2, 1),
            "num_res_blocks": 1,
            "quant_conv_ks": 1,
            "using_sa": False,
            "using_mid_sa": False,
        },
    ),
)


def models_of(case: Case) -> tuple[VAR, VQVAE]:
    """A case's models with their random weights."""
    var, vqvae = VAR(case.var), VQVAE(case.vqvae)
    for model in (var, vqvae):
        model.load_state_dict(random_state(model), strict=False)
        model.eval().requires_grad_(False)
    return var, vqvae


def random_state(model: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights for every tensor of a model but the derived ones; they depend on names and shapes only."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.endswith(DERIVED)}
    return {name: torch.from_numpy(_random_tensor(name, shape, seed)) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if name.endswith("scale_mul_1H11"):  # the last head is above the official maximum, log 100
        return np.linspace(1, 5, shape[1], dtype=np.float32).reshape(shape)
    normal = _random(f"{seed}:{name}").standard_normal(shape)
    if "norm" in name and name.endswith("weight"):
        return (1 + 0.1 * normal).astype(np.float32)
    if name == "quantize.embedding.weight":
        return normal.astype(np.float32)
    if name.endswith(("class_emb.weight", "lvl_embed.weight", "pos_start", "pos_1LC", "ada_gss")):
        return (0.5 * normal).astype(np.float32)
    std = 0.1 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
    return (std * normal).astype(np.float32)


def _random(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()))


@dataclass(frozen=True)
class Inputs:
    """labels int64 [B], forced_tokens int64 [B, L], pictures float32 [B, 3, H, W] in [-1, 1]."""

    labels: torch.Tensor
    forced_tokens: torch.Tensor
    pictures: torch.Tensor


def random_inputs(var: VARConfig, vqvae: VQVAEConfig) -> Inputs:
    """Inputs that depend on the configurations only."""
    rng = _random("inputs")
    side = vqvae.image_size
    return Inputs(
        labels=torch.from_numpy(rng.randint(0, var.num_classes, BATCH)),
        forced_tokens=torch.from_numpy(rng.randint(0, var.vocab_size, (BATCH, var.num_tokens))),
        pictures=torch.from_numpy(rng.uniform(-1, 1, (BATCH, 3, side, side)).astype(np.float32)),
    )


def random_pictures(vqvae: VQVAEConfig) -> np.ndarray:
    """What the encoder's goldens are of: uint8 [B, H, W, 3], smooth at several scales, so that all stages matter."""
    rng, side = _random("pictures"), vqvae.image_size
    total = np.zeros((BATCH, side, side, 3))
    for size in (1, 2, 4, side):
        place = np.arange(side) * size // side
        total += rng.uniform(-1, 1, (BATCH, size, size, 3))[:, place[:, None], place]
    return np.clip(127.5 + 60 * total, 0, 255).astype(np.uint8)


def measure(var: VAR, vqvae: VQVAE, inputs: Inputs) -> dict[str, np.ndarray]:
    """Our models' side of a comparison; `make_goldens.OfficialModels.measure` is the other.

    Returns:
        logits [B, L, V] (guided, teacher-forced), f_hat [B, Cvae, h, w] and picture [B, 3, H, W] in [0, 1] of the
        forced tokens, greedy_tokens [B, L], encoded_tokens [B, L] of the pictures.
    """
    uniforms = torch.zeros(len(inputs.labels), var.config.num_tokens)
    forced = generate(var, vqvae, inputs.labels, uniforms, inputs.forced_tokens, cfg_scale=CFG_SCALE)
    greedy = generate(var, vqvae, inputs.labels, uniforms, cfg_scale=CFG_SCALE, top_k=1)
    results = {
        "logits": torch.cat(forced.guided_logits, dim=1),
        "f_hat": forced.f_hat,
        "picture": (vqvae.decode(forced.f_hat) + 1) / 2,
        "greedy_tokens": greedy.token_maps,
        "encoded_tokens": torch.cat(vqvae.encode(inputs.pictures), dim=1),
    }
    return {name: tensor.numpy() for name, tensor in results.items()}


def differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of float arrays, the largest difference over the range of theirs; of tokens, the share that differs."""
    return {name: _difference(ours[name], theirs[name]) for name in theirs}


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        raise ValueError(f"expected shape {theirs.shape}, found {ours.shape}")
    if np.issubdtype(theirs.dtype, np.integer):
        return float(np.mean(ours != theirs))
    return float(np.abs(ours - theirs).max() / np.ptp(theirs))


# The shared checkpoint is larger: its goldens hold some codebook columns of the logits and the middle of the picture.
CHECKPOINT_FILES = ("var_tin64_d7.pth", "vae_tin64.pth")
CHECKPOINT_COLUMNS = slice(0, None, 64)
CHECKPOINT_CROP = slice(20, 44)


def condense(results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of a large model's results that its goldens hold."""
    small = dict(results)
    logits, picture = small.pop("logits"), small.pop("picture")
    return small | {
        "logits": logits[..., CHECKPOINT_COLUMNS],
        "argmax": logits.argmax(-1),
        "picture": picture[..., CHECKPOINT_CROP, CHECKPOINT_CROP],
    }


# The encoder's goldens: token maps [B, L] of `random_pictures`, by the names of the cases.
ENCODER = "encoder"

# The sampler's goldens.
SAMPLER_SETTINGS: Sequence[tuple[int, float]] = ((0, 0.0), (50, 0.0), (0, 0.9), (100, 0.8), (1, 0.0), (3, 0.5))
SAMPLER_DRAWS = 20_000


def sampler_logits() -> np.ndarray:
    """Logits with the spread of a trained model's, float32 [4, 256]."""
    return (2.5 * _random("sampler").standard_normal((4, 256))).astype(np.float32)
