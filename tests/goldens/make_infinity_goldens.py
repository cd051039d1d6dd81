"""Make the goldens with the official code: https://github.com/FoundationVision/Infinity, checked out at REFERENCE_DIR.

    python tests/goldens/make_infinity_goldens.py REFERENCE_DIR [--full-size]

Writes tests/goldens/infinity*.npz and prints how far our models are from the official ones; --full-size compares
infinity-125m with random weights, and writes nothing. It needs the packages einops, tqdm and pytz. CUDA kernels of the
official code are replaced by the same mathematics in torch, in float32.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from infinity_parity import (
    AREA,
    CASES,
    CHUNKS,
    HEAD,
    ROPE_HEAD_DIM,
    ROPE_MODES,
    SAMPLER_DRAWS,
    SAMPLER_TOP_PS,
    Case,
    Inputs,
    in_chunks,
    measure,
    model_of_state,
    random_inputs,
    random_state,
    rope_sums,
    sampler_logits,
    some_channels,
    some_tokens,
)
from parity import GOLDENS, differences
from torch.nn.functional import scaled_dot_product_attention

from nextscale.models.infinity.presets import get_preset
from nextscale.models.infinity.random_weights import random_infinity
from nextscale.models.infinity.schedules import SCALES, Ratio
from nextscale.models.infinity.transformer import Infinity


def import_official(reference_dir: Path) -> types.SimpleNamespace:
    """The official modules, without what they need for training or CUDA."""

    def flash_attn_func(q: Any, k: Any, v: Any) -> None:
        raise AssertionError("not called without customized_flash_attn")

    stubs = {
        "flash_attn": {"flash_attn_func": flash_attn_func, "flash_attn_varlen_kvpacked_func": attention_by_segment},
        "timm": {},
        "timm.loss": {"SoftTargetCrossEntropy": type("SoftTargetCrossEntropy", (torch.nn.Module,), {})},
        "timm.models": {"register_model": lambda function: function},
        "timm.models.layers": {"DropPath": type("DropPath", (torch.nn.Module,), {}), "drop_path": None},
    }
    for name, attributes in stubs.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    sys.path.insert(0, str(reference_dir))
    with patch.object(torch, "compile", lambda **options: lambda function: function):
        import infinity.models.basic as basic
        import infinity.models.bitwise_self_correction as correction
        import infinity.models.bsq_vae.multiscale_bsq as multiscale_bsq
        import infinity.models.infinity as model
        import infinity.utils.dynamic_resolution as resolution

    vars(basic)["torch"] = FloatTorch()
    return types.SimpleNamespace(
        basic=basic, correction=correction, multiscale_bsq=multiscale_bsq, model=model, resolution=resolution
    )


class FloatTorch:
    """torch, whose bfloat16 is float32: what the official code narrows for its kernels stays as it is."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def attention_by_segment(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
) -> torch.Tensor:
    """Attention of each row's queries [Nq, H, d] to its own keys and values [Nk, 2, H, d]."""
    rows, texts = (tensor.split(ends.diff().tolist()) for tensor, ends in ((q, cu_seqlens_q), (kv, cu_seqlens_k)))
    found = []
    for queries, (keys, values) in zip(rows, (text.unbind(1) for text in texts), strict=True):
        heads_first = (part.transpose(0, 1) for part in (queries, keys, values))
        found.append(scaled_dot_product_attention(*heads_first, scale=softmax_scale).transpose(0, 1))
    return torch.cat(found)


class OfficialInfinity:
    """The official transformer with given weights, and its quantizer of bits."""

    def __init__(self, reference: types.SimpleNamespace, case: Case, state: Mapping[str, torch.Tensor]) -> None:
        self.reference, self.case, config = reference, case, case.config
        quantizer = reference.multiscale_bsq.MultiScaleBSQ(
            dim=config.latent_channels, codebook_size=2**config.latent_channels, new_quant=True
        )
        # What the official transformer and its training ask of a VAE.
        self.vae = types.SimpleNamespace(
            embed_dim=config.latent_channels, codebook_dim=config.latent_channels, vocab_size=None, quantizer=quantizer,
            decode=self._decode,
        )  # fmt: skip
        with redirect_stdout(StringIO()):  # it prints its settings
            self.model = reference.model.Infinity(
                self.vae,
                text_channels=config.text_channels,
                text_maxlen=config.max_text,
                embed_dim=config.embed_dim,
                depth=config.depth,
                num_heads=config.num_heads,
                shared_aln=True,
                fused_norm=True,  # without it all stages get the first one's positions
                block_chunks=CHUNKS,
                add_lvl_embeding_only_first_block=int(config.level_blocks == (0,)),
                rope2d_each_sa_layer=1,
                rope2d_normalized_by_hw=config.rope_mode,
                apply_spatial_patchify=int(config.patchify),
            ).eval()
        in_chunk = config.depth // CHUNKS
        missing, unexpected = self.model.load_state_dict(in_chunks(state, in_chunk))
        assert not unexpected, unexpected
        assert all(name.endswith("zero_k_bias") for name in missing), missing
        self.f_hat = torch.empty(0)
        scales = official_scales(reference, case.ratio)
        self.schedule = [(1, h, w) for _, h, w in scales]
        assert tuple((h, w) for _, h, w in scales) == case.size.stage_sizes

    def _decode(self, f_hat: torch.Tensor) -> torch.Tensor:
        self.f_hat = f_hat
        return torch.zeros(len(f_hat), 3, 1, 1)

    @torch.no_grad()
    def measure(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """As `infinity_parity.measure`."""
        config = self.case.config
        recorded: dict[str, list[torch.Tensor]] = {}
        modules = {
            "normed_text": self.model.text_norm,
            "projected_text": self.model.text_proj_for_ca,
            "cond": self.model.text_proj_for_sos,
            **{f"block_{i}": block for i, block in enumerate(self.model.unregistered_blocks)},
            "embedded": self.model.word_embed,
        }

        def record(name: str, module: Any, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
            # The official code adds to some tensors in place.
            recorded.setdefault(name, []).append((arguments[0] if name == "embedded" else output).clone())

        hooks = [module.register_forward_hook(partial(record, name)) for name, module in modules.items()]
        log_odds, _ = self._generate(inputs, inputs.forced_bits)
        for hook in hooks:
            hook.remove()
        f_hat = self.f_hat
        _, greedy = self._generate(inputs)
        results = {
            "log_odds": some_tokens(log_odds),
            "f_hat": f_hat,
            "inputs": some_tokens(torch.cat(recorded["embedded"], dim=1)),
            "greedy_bits": greedy,
            "cond": recorded["cond"][0],
            "normed_text": some_channels(recorded["normed_text"][0]),
            "projected_text": some_channels(recorded["projected_text"][0]),
        } | {
            f"block_{i}": some_channels(some_tokens(torch.cat(recorded[f"block_{i}"], dim=1)))
            for i in range(config.depth)
        }
        return {name: tensor.numpy() for name, tensor in results.items()}

    def _generate(self, inputs: Inputs, forced: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The official loop; guided log-odds [B, L, D] and bits [B, L, D]."""
        guidance, batch = self.case.guidance, len(inputs.texts)
        log_odds: list[torch.Tensor] = []
        bits: list[torch.Tensor] = []
        official_sampler = self.reference.model.sample_with_top_k_top_p_also_inplace_modifying_logits_

        def sampler(logits: torch.Tensor, **options: Any) -> torch.Tensor:
            log_odds.append((logits[..., 1] - logits[..., 0]).unflatten(1, (-1, self.case.config.token_bits)))
            sampled: torch.Tensor = official_sampler(logits, **options)
            bits.append(sampled[..., 0].view_as(log_odds[-1]))
            return sampled

        stages = () if forced is None else forced.split(self.case.size.stage_tokens, dim=1)
        with patch.object(self.reference.model, official_sampler.__name__, sampler):
            self.model.autoregressive_infer_cfg(
                vae=self.vae,
                scale_schedule=self.schedule,
                label_B_or_BLT=compact(inputs.texts),
                negative_label_B_or_BLT=compact(inputs.negatives) if guidance.negative else None,
                B=batch,
                g_seed=0,
                cfg_list=list(guidance.cfg_scale),
                tau_list=list(guidance.tau),
                top_k=1,
                cfg_insertion_layer=[0],
                vae_type=1,
                returns_vemb=1,
                ret_img=True,
                inference_mode=True,
                gt_leak=len(stages),
                gt_ls_Bl=[self._on_latent_grid(stage, si) for si, stage in enumerate(stages)],
            )
        return torch.cat(log_odds, dim=1), torch.cat(bits, dim=1)

    def _on_latent_grid(self, bits: torch.Tensor, si: int) -> torch.Tensor:
        """[B, l, D] -> [B, 1, h, w, c]."""
        maps = bits.transpose(1, 2).unflatten(2, self.case.size.stage_sizes[si])
        return torch.nn.functional.pixel_shuffle(maps, self.case.size.patch).permute(0, 2, 3, 1)[:, None]

    @torch.no_grad()
    def encode(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bits [B, L, D] of a latent, and the transformer's inputs [B, L - 1, D], as in the official training."""
        options = types.SimpleNamespace(
            noise_apply_layers=-1, noise_apply_requant=1, noise_apply_strength=0.0,
            apply_spatial_patchify=int(self.case.config.patchify), debug_bsc=False,
        )  # fmt: skip
        patch_side = self.case.size.patch
        schedule = [(1, patch_side * h, patch_side * w) for _, h, w in self.schedule]
        inputs, bits = self.reference.correction.BitwiseSelfCorrection(self.vae, options).flip_requant(
            schedule, None, latent, "cpu"
        )
        return torch.cat(bits, dim=1), inputs


def official_scales(reference: types.SimpleNamespace, ratio: Ratio, area: str = AREA) -> list[tuple[int, int, int]]:
    """An official schedule; its ratios are h/w in three digits, cut."""
    height, width = ratio
    by_area = reference.resolution.dynamic_resolution_h_w
    name = min(by_area, key=lambda number: abs(number - height / width))
    scales: list[tuple[int, int, int]] = by_area[name][area]["scales"]
    return scales


def compact(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int], torch.Tensor, int]:
    """Texts as the official code takes them: tokens of all, lengths, where each begins and ends, the longest."""
    lengths = [len(text) for text in texts]
    return torch.cat(list(texts)), lengths, torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32), max(lengths)


def make_rope(reference: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """Sums of the official tables, by mode."""

    def tables(mode: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        grids = reference.basic.precompute_rope2d_freqs_grid(
            ROPE_HEAD_DIM, reference.resolution.dynamic_resolution_h_w, mode
        )
        for ratio in SCALES:
            schedule = [(1, h, w) for _, h, w in official_scales(reference, ratio, "1M")]
            cos, sin = grids[str(tuple(schedule))][:, 0, 0, 0]
            lengths = [h * w for _, h, w in schedule]
            yield from zip(cos.split(lengths), sin.split(lengths), strict=True)

    return {str(mode): rope_sums(tables(mode)) for mode in ROPE_MODES}


def make_schedules(reference: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """The official templates of h/w in their order, and the scales of each, [15, 13, 2]."""
    by_area = reference.resolution.dynamic_resolution_h_w
    scales = [[(h, w) for _, h, w in by_area[name]["1M"]["scales"]] for name in by_area]
    counts = [len(scales_of_area["scales"]) for scales_of_area in by_area[1.0].values()]
    return {"ratios": np.array(list(by_area)), "scales": np.array(scales), "counts": np.array(counts)}


def make_sampler(reference: types.SimpleNamespace) -> dict[str, np.ndarray]:
    """Which values the official sampler keeps, bool [N, 2], and how often it draws 1, by top_p."""
    arrays = {}
    for top_p in SAMPLER_TOP_PS:
        filtered = torch.from_numpy(sampler_logits()[None].copy())
        drawn = reference.model.sample_with_top_k_top_p_also_inplace_modifying_logits_(
            filtered, 0, top_p, torch.Generator().manual_seed(0), SAMPLER_DRAWS
        )
        arrays[f"kept_{top_p}"] = np.isfinite(filtered[0].numpy())
        arrays[f"ones_{top_p}"] = drawn[0].sum(-1).numpy()
    return arrays


def make_case(
    reference: types.SimpleNamespace, case: Case, model: Infinity, state: Mapping[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    """The official code's results for a case, given our model and the same weights with the official head."""
    official, inputs = OfficialInfinity(reference, case, state), random_inputs(case)
    theirs = official.measure(inputs)
    bits, next_inputs = official.encode(inputs.latent)
    report = differences(measure(model, case, inputs), theirs)
    print(f"{case.name}: " + ", ".join(f"{what} {figure:.1e}" for what, figure in report.items()))
    return theirs | {"encoded_bits": bits.numpy(), "encoded_inputs": some_tokens(next_inputs).numpy()}


def compare_full_size(reference: types.SimpleNamespace) -> None:
    """Of the smallest preset, with the first case's guidance and size."""
    preset = get_preset("infinity-125m")
    model = random_infinity(preset.config)
    state = model.state_dict()
    # Of a bit's two logits, that of 0 is 0.
    logits = {name: torch.stack((torch.zeros_like(state[name]), state[name]), dim=1).flatten(0, 1) for name in HEAD}
    make_case(reference, Case(preset.name, CASES[0].guidance, options=asdict(preset.config)), model, state | logits)


def save(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Bits are packed, eight in a byte, along the last axis."""
    narrow = {
        key: np.packbits(array.astype(bool), axis=-1) if key.endswith("_bits") else array
        for key, array in arrays.items()
    }
    np.savez_compressed(GOLDENS / f"{name}.npz", **narrow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference_dir", type=Path)
    parser.add_argument("--full-size", action="store_true", help="compare infinity-125m instead")
    arguments = parser.parse_args()
    reference = import_official(arguments.reference_dir)

    if arguments.full_size:
        compare_full_size(reference)
        return
    for case in CASES:
        state = random_state(case.config)
        save(case.name, make_case(reference, case, model_of_state(case.config, state), state))
    save("infinity_rope", make_rope(reference))
    save("infinity_schedules", make_schedules(reference))
    save("infinity_sampler", make_sampler(reference))


if __name__ == "__main__":
    main()
