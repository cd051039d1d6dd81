"""Checkpoints to models: read a file, infer the configuration from tensor names and shapes, load, say what misfits.

The official releases load unchanged, and so do training checkpoints of the official code and `.safetensors` files with
the same tensor names. float16 and bfloat16 values become float32.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nextscale.models.var.presets import KNOWN_PATCH_NUMS, PRESETS
from nextscale.models.var.transformer import VAR, VARConfig, level_and_mask
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig
from nextscale.runtime._errors import NextscaleError

Part = Literal["var", "vqvae"]
Model = TypeVar("Model", VAR, VQVAE)
Config = TypeVar("Config", VARConfig, VQVAEConfig)

MAX_LISTED = 10
MASK = "attn_bias_for_masking"
CODE_HITS = "quantize.ema_vocab_hit_SV"
PART_NAMES: dict[Part, str] = {"var": "VAR", "vqvae": "VQVAE"}
# Where the official trainer's checkpoints keep each model.
TRAINER_KEYS: dict[Part, str] = {"var": "var_wo_ddp", "vqvae": "vae_local"}
WRAPPER_KEYS = ("state_dict", "model")
# What DistributedDataParallel and torch.compile put before each name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
# The tensors from which a configuration is inferred, and their number of dimensions.
SHAPE_KEYS: dict[Part, dict[str, int]] = {
    "var": {
        "word_embed.weight": 2,
        "class_emb.weight": 2,
        "pos_start": 3,
        "pos_1LC": 3,
        "lvl_embed.weight": 2,
        "blocks.0.attn.mat_qkv.weight": 2,
        "blocks.0.ffn.fc1.weight": 2,
        "head.weight": 2,
    },
    "vqvae": {
        "quantize.embedding.weight": 2,
        "quant_conv.weight": 4,
        "encoder.conv_in.weight": 4,
        "encoder.down.0.block.0.conv1.weight": 4,
        "decoder.conv_in.weight": 4,
    },
}


class CheckpointError(NextscaleError):
    """A checkpoint that cannot be read, or does not hold the model it should."""


# --------------------------------------------------------------------------------------------------------------------
# Files


def read_state_dict(path: str | Path, part: Part | None = None) -> dict[str, Tensor]:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file, by name.

    The file is mapped into memory where its format allows, so its tensors take no memory until they are read.

    Args:
        path: the file; its format is told from its first bytes.
        part: which model of a training checkpoint of the official code, which holds both.
    Raises:
        CheckpointError: no such file, truncated, foreign, entries that are not tensors, NaN or infinite values.
    """
    path = Path(path)
    content = _unwrap(_read_file(path), path, part)
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    strangers = [str(name) for name in content if name not in tensors]
    if strangers or not tensors:
        found = f"found other entries: {_listed(strangers)}" if strangers else "found none"
        raise CheckpointError(f"{path}: expected a dictionary of tensors by name, {found}")
    prefix = next((p for p in WRAPPER_PREFIXES if all(name.startswith(p) for name in tensors)), "")
    state_dict = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    bad = [name for name, tensor in state_dict.items() if not name.endswith(MASK) and not _is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{path}: NaN or infinite values in {_listed(bad)}; the checkpoint is damaged")
    return state_dict


def _read_file(path: Path) -> object:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a .pth, .pt or .safetensors file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected a .pth, .pt or .safetensors file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not a checkpoint; download the file itself")
    if head.startswith(b"PK\x03\x04"):
        return _read_torch_zip(path)
    # A pickle begins with 0x80, but so does every 32nd safetensors file: with the length of its header.
    if head[:1] == b"\x80" and head[8:9] != b"{":
        return _torch_load(path, mmap=False)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    raise CheckpointError(f"{path} is neither a torch (.pth, .pt) nor a .safetensors file")


def _read_torch_zip(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path} is truncated or damaged; copy or download it again") from None
    if not any(name.split("/")[-1] == "data.pkl" for name in names):
        raise CheckpointError(f"{path} is a zip archive, but not one that torch.save wrote")
    return _torch_load(path, mmap=True)


def _torch_load(path: Path, *, mmap: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects beside tensors, which are not loaded for safety; "
            "save its state dict alone"
        ) from error
    except Exception as error:  # cut anywhere, a pickle raises almost anything: IndexError, struct.error, EOFError, …
        raise CheckpointError(f"{path} is truncated or damaged ({_first_line(error)})") from error


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is a truncated or damaged .safetensors file ({_first_line(error)})") from error


def _unwrap(content: object, path: Path, part: Part | None) -> dict[str, object]:
    """The innermost dictionary: training checkpoints and {"state_dict": ...} hold the tensors in an inner one."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors by name, found a {type(content).__name__}")
    if isinstance(trainer := content.get("trainer"), dict):
        content = trainer
    if any(key in content for key in TRAINER_KEYS.values()):
        if part is None:
            raise CheckpointError(f"{path} is a training checkpoint with several models; say which: var or vqvae")
        if not isinstance(inner := content.get(TRAINER_KEYS[part]), dict):
            raise CheckpointError(f"{path} is a training checkpoint without a {PART_NAMES[part]}")
        return inner
    return next((content[key] for key in WRAPPER_KEYS if isinstance(content.get(key), dict)), content)


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(bound) for bound in tensor.aminmax())  # NaN propagates


# --------------------------------------------------------------------------------------------------------------------
# Configurations


def infer_var_config(
    state_dict: Mapping[str, Tensor],
    *,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    source: str | Path = "the state dict",
) -> VARConfig:
    """The configuration of the VAR whose tensors these are.

    Args:
        state_dict: tensors by their official names.
        patch_nums: needed only if the stages can be told neither from the buffer lvl_1L nor from the known lists.
        num_heads: needed only without attn_l2_norm, whose scales tell it.
        source: what to call the state dict in errors.
    """
    _require_shape_keys(state_dict, "var", source)
    hidden_dim, embed_dim = state_dict["blocks.0.ffn.fc1.weight"].shape
    return VARConfig(
        num_classes=state_dict["class_emb.weight"].shape[0] - 1,
        depth=_count(state_dict, r"blocks\.(\d+)\."),
        embed_dim=embed_dim,
        num_heads=_infer_num_heads(state_dict, embed_dim, num_heads, source),
        mlp_ratio=hidden_dim / embed_dim,
        attn_l2_norm="blocks.0.attn.scale_mul_1H11" in state_dict,
        shared_aln="shared_ada_lin.1.weight" in state_dict,
        patch_nums=_infer_patch_nums(state_dict, patch_nums, source),
        vocab_size=state_dict["head.weight"].shape[0],
        z_channels=state_dict["word_embed.weight"].shape[1],
    )


def infer_vqvae_config(
    state_dict: Mapping[str, Tensor],
    *,
    patch_nums: Sequence[int],
    quant_resi: float = 0.5,
    using_znorm: bool = False,
    source: str | Path = "the state dict",
) -> VQVAEConfig:
    """The configuration of the VQVAE whose tensors these are.

    Args:
        state_dict: tensors by their official names.
        patch_nums: the VAR's; a VQVAE serves several.
        quant_resi, using_znorm: leave no trace in the tensors; the defaults are those of the official releases.
        source: what to call the state dict in errors.
    """
    _require_shape_keys(state_dict, "vqvae", source)
    ch = state_dict["encoder.conv_in.weight"].shape[0]
    widths = [
        state_dict[f"encoder.down.{i}.block.0.conv1.weight"].shape[0]
        for i in range(_count(state_dict, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight"))
        if f"encoder.down.{i}.block.0.conv1.weight" in state_dict
    ]
    if any(width % ch for width in widths):
        raise CheckpointError(f"{source}: the encoder's widths {widths} are not multiples of the first one, {ch}")
    share_quant_resi, num_phis = _infer_phis(state_dict)
    vocab_size, z_channels = state_dict["quantize.embedding.weight"].shape
    return VQVAEConfig(
        vocab_size=vocab_size,
        z_channels=z_channels,
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=_count(state_dict, r"encoder\.down\.0\.block\.(\d+)\."),
        patch_nums=_checked_patch_nums(patch_nums),
        share_quant_resi=share_quant_resi,
        quant_resi=_checked_quant_resi(quant_resi) if num_phis else 0.0,
        default_qresi_counts=0 if share_quant_resi or num_phis == len(patch_nums) else num_phis,
        using_znorm=using_znorm,
        quant_conv_ks=state_dict["quant_conv.weight"].shape[-1],
        using_sa=any(re.match(r"encoder\.down\.\d+\.attn\.", name) for name in state_dict),
        using_mid_sa=any(name.startswith("encoder.mid.attn_1.") for name in state_dict),
    )


def _require_shape_keys(state_dict: Mapping[str, Tensor], part: Part, source: str | Path) -> None:
    """Refuse a state dict that lacks a tensor from which the configuration is inferred."""
    misshapen = [
        f"{name} (expected {ndim} dimensions above 0, found {list(state_dict[name].shape)})"
        for name, ndim in SHAPE_KEYS[part].items()
        if name in state_dict and (state_dict[name].ndim != ndim or not state_dict[name].numel())
    ]
    if not misshapen and all(name in state_dict for name in SHAPE_KEYS[part]):
        return
    other: Part = "vqvae" if part == "var" else "var"
    if all(name in state_dict for name in SHAPE_KEYS[other]):
        raise CheckpointError(
            f"{source} holds a {PART_NAMES[other]}, expected a {PART_NAMES[part]}; were the two files swapped?"
        )
    preset = PRESETS["var-d16"]
    shapes = _shapes(_skeleton(VAR, preset.var) if part == "var" else _skeleton(VQVAE, preset.vqvae))
    missing = [name for name in SHAPE_KEYS[part] if name not in state_dict]
    missing += [name for name in shapes if name not in state_dict and name not in missing]
    unexpected = [name for name in state_dict if name not in shapes and not _is_derived(name)]
    raise CheckpointError(
        f"{source} does not hold a {PART_NAMES[part]} with the official tensor names"
        + _report(missing, unexpected, misshapen)
    )


def _infer_num_heads(
    state_dict: Mapping[str, Tensor], embed_dim: int, num_heads: int | None, source: str | Path
) -> int:
    scale = state_dict.get("blocks.0.attn.scale_mul_1H11")
    found = num_heads if scale is None else scale.numel()
    if found is None:
        raise CheckpointError(
            f"{source}: without l2 norm its tensors cannot tell its heads: give --num-heads or --preset"
        )
    if num_heads not in (None, found):
        raise CheckpointError(f"{source} has {found} heads (scale_mul_1H11), --num-heads says {num_heads}")
    if found < 1 or embed_dim % found:
        raise CheckpointError(f"{source}: its width {embed_dim} is not a multiple of {found} heads; give --num-heads")
    return found


def _infer_patch_nums(
    state_dict: Mapping[str, Tensor], given: Sequence[int] | None, source: str | Path
) -> tuple[int, ...]:
    num_tokens = state_dict["pos_1LC"].shape[1]
    first = state_dict["pos_start"].shape[1]
    num_stages = state_dict["lvl_embed.weight"].shape[0]

    def fits(patch_nums: tuple[int, ...]) -> bool:
        stages = [pn * pn for pn in patch_nums]
        return len(stages) == num_stages and sum(stages) == num_tokens and stages[0] == first

    described = f"{num_stages} stages, {first} tokens in the first and {num_tokens} in all"
    if "lvl_1L" in state_dict:
        level = state_dict["lvl_1L"].long()
        counts = [int((level == si).sum()) for si in range(num_stages)]
        found = tuple(math.isqrt(count) for count in counts)
        if not fits(found) or not torch.equal(level, level_and_mask(found)[0]):
            raise CheckpointError(f"{source}: lvl_1L has stages of {counts} tokens, other tensors say {described}")
        if given is not None and tuple(given) != found:
            raise CheckpointError(
                f"{source} has patch_nums {_joined(found)} (lvl_1L), --patch-nums says {_joined(given)}"
            )
        return _checked_patch_nums(found)
    if given is not None:
        if not fits(patch_nums := _checked_patch_nums(given)):
            raise CheckpointError(f"{source} has {described}, which patch_nums {_joined(given)} do not give")
        return patch_nums
    for known in KNOWN_PATCH_NUMS:
        if fits(known):
            return known
    raise CheckpointError(f"{source} has {described}; its patch_nums cannot be told from that: give --patch-nums")


def _checked_patch_nums(patch_nums: Sequence[int]) -> tuple[int, ...]:
    if len(patch_nums) < 2 or min(patch_nums) < 1 or list(patch_nums) != sorted(patch_nums):
        raise CheckpointError(
            f"patch_nums must be two or more positive side lengths in ascending order, found {_joined(patch_nums)}"
        )
    return tuple(patch_nums)


def _checked_quant_resi(quant_resi: float) -> float:
    if not abs(quant_resi) <= 1:  # nor is NaN
        raise CheckpointError(f"quant_resi must be a number from -1 to 1, found {quant_resi}")
    return quant_resi


def _infer_phis(state_dict: Mapping[str, Tensor]) -> tuple[int, int]:
    """share_quant_resi and the number of phis; no phi at all is quant_resi = 0, where sharing means nothing."""
    if "quantize.quant_resi.qresi.weight" in state_dict:
        return 1, 1
    if count := _count(state_dict, r"quantize\.quant_resi\.qresi_ls\.(\d+)\."):
        return count, count
    if count := _count(state_dict, r"quantize\.quant_resi\.(\d+)\."):
        return 0, count
    return 1, 0


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different indices the pattern's group takes."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


# --------------------------------------------------------------------------------------------------------------------
# Models


def load_models(
    var_path: str | Path,
    vae_path: str | Path,
    *,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    quant_resi: float = 0.5,
    using_znorm: bool = False,
) -> tuple[VAR, VQVAE]:
    """A VAR and its VQVAE; a training checkpoint of the official code may be given as both.

    Args:
        var_path, vae_path: checkpoints.
        patch_nums, num_heads: see `infer_var_config`.
        quant_resi, using_znorm: see `infer_vqvae_config`.
    Raises:
        CheckpointError: an option is out of its range, which is found first; a file cannot be read or loaded; the two
            do not belong together.
    """
    _checked_quant_resi(quant_resi)
    if patch_nums is not None:
        patch_nums = _checked_patch_nums(patch_nums)
    var = load_var(var_path, patch_nums=patch_nums, num_heads=num_heads)
    vqvae = load_vqvae(vae_path, patch_nums=var.config.patch_nums, quant_resi=quant_resi, using_znorm=using_znorm)
    for what, ours, theirs in (
        ("codebook entries", var.config.vocab_size, vqvae.config.vocab_size),
        ("latent channels", var.config.z_channels, vqvae.config.z_channels),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"{var_path} is for {ours} {what}, {vae_path} has {theirs}; give the VQVAE that the VAR learned from"
            )
    return var, vqvae


def load_var(
    path: str | Path,
    *,
    config: VARConfig | None = None,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
) -> VAR:
    """The VAR in a checkpoint: float32, in eval mode, without gradients.

    Args:
        path: the checkpoint.
        config: what it must be; None infers it.
        patch_nums, num_heads: see `infer_var_config`.
    """
    state_dict = read_state_dict(path, "var")
    config = config or infer_var_config(state_dict, patch_nums=patch_nums, num_heads=num_heads, source=path)
    level, mask = level_and_mask(config.patch_nums)
    derived = {"lvl_1L": level, MASK: mask}
    derived |= {f"blocks.{i}.attn.zero_k_bias": torch.zeros(config.embed_dim) for i in range(config.depth)}
    return _load(VAR, config, state_dict, derived, path, {name: preset.var for name, preset in PRESETS.items()})


def load_vqvae(
    path: str | Path,
    *,
    config: VQVAEConfig | None = None,
    patch_nums: Sequence[int] | None = None,
    quant_resi: float = 0.5,
    using_znorm: bool = False,
) -> VQVAE:
    """The VQVAE in a checkpoint: float32, in eval mode, without gradients.

    Args:
        path: the checkpoint.
        config: what it must be; None infers it, and then patch_nums is needed.
        patch_nums, quant_resi, using_znorm: see `infer_vqvae_config`.
    """
    state_dict = read_state_dict(path, "vqvae")
    if config is None:
        if patch_nums is None:
            raise ValueError("load_vqvae needs a config or patch_nums")
        config = infer_vqvae_config(
            state_dict, patch_nums=patch_nums, quant_resi=quant_resi, using_znorm=using_znorm, source=path
        )
    derived = {CODE_HITS: torch.zeros(len(config.patch_nums), config.vocab_size)}
    return _load(VQVAE, config, state_dict, derived, path, {name: preset.vqvae for name, preset in PRESETS.items()})


def _load(
    model_type: Callable[[Config], Model],
    config: Config,
    state_dict: dict[str, Tensor],
    derived: Mapping[str, Tensor],
    path: Path | str,
    presets: Mapping[str, Config],
) -> Model:
    """Build the model without memory and give it the checkpoint's tensors, which leave `state_dict` one by one."""
    model = _skeleton(model_type, config, path)
    expected = _shapes(model)
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items() if not _is_derived(name)}
    if found != expected:
        fitting = [name for name, preset in presets.items() if found == _shapes(_skeleton(model_type, preset))]
        misshapen = [
            f"{name} (expected {list(shape)}, found {list(found[name])})"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ]
        raise CheckpointError(
            f"{path} does not fit {config}"
            + _report([n for n in expected if n not in found], [n for n in found if n not in expected], misshapen)
            + (f"\n  the preset that fits: {fitting[0]}" if fitting else "")
        )
    weights = {name: state_dict.pop(name).float().contiguous() for name in expected}
    model.load_state_dict(weights | dict(derived), assign=True)
    return model.eval().requires_grad_(False)


def _skeleton(model_type: Callable[[Config], Model], config: Config, source: str | Path = "the preset") -> Model:
    """The model without memory for its tensors."""
    try:
        with torch.device("meta"):
            return model_type(config)
    except ValueError as error:
        raise CheckpointError(f"{source}: no model can be built from {config}: {_first_line(error)}") from error


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not _is_derived(name)}


def _is_derived(name: str) -> bool:
    """Buffers that follow from the configuration, or serve training alone: rebuilt, whatever a checkpoint holds."""
    return name.endswith((CODE_HITS, MASK, "lvl_1L", "attn.zero_k_bias"))


# --------------------------------------------------------------------------------------------------------------------
# Messages


def _report(missing: Sequence[str], unexpected: Sequence[str], misshapen: Sequence[str]) -> str:
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    return "".join(f"\n  {len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names)


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _joined(patch_nums: Sequence[int]) -> str:
    return ",".join(map(str, patch_nums))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
