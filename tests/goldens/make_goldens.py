"""Make the goldens with the official code: https://github.com/FoundationVision/VAR, checked out at REFERENCE_DIR.

    python tests/goldens/make_goldens.py REFERENCE_DIR [--checkpoints DIR] [--full-size]

Writes tests/goldens/*.npz and prints how far our models are from the official ones. --full-size compares var-d16 with
random weights, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from parity import (
    CASES,
    CFG_SCALE,
    CHECKPOINT_FILES,
    DERIVED,
    EDIT_BOXES,
    EDIT_CFG_SCALE,
    EDITED_CASES,
    EDITS,
    ENCODER,
    GOLDENS,
    SAMPLER_DRAWS,
    SAMPLER_SETTINGS,
    SMOOTH,
    SMOOTH_SEED,
    SMOOTH_TOP_K,
    SMOOTH_TOP_P,
    Inputs,
    condense,
    differences,
    measure,
    models_of,
    random_inputs,
    random_pictures,
    sampler_logits,
)

from nextscale.models.var.checkpoint import load_models
from nextscale.models.var.random_weights import random_models
from nextscale.models.var.transformer import VAR, VARConfig
from nextscale.models.var.vqvae import VQVAE, VQVAEConfig
from nextscale.runtime._uniforms import SMOOTHING, uniforms


def import_official(reference_dir: Path) -> tuple[Any, Any, Any]:
    """The official modules models.var, models.vqvae and models.basic_vae, without what they need for training."""
    dist = types.ModuleType("dist")
    dist.get_device = lambda: "cpu"  # type: ignore[attr-defined]
    dist.initialized = lambda: False  # type: ignore[attr-defined]
    hub = types.ModuleType("huggingface_hub")
    hub.PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})  # type: ignore[attr-defined]
    sys.modules |= {"dist": dist, "huggingface_hub": hub}
    sys.path.insert(0, str(reference_dir))
    from models import basic_vae, var, vqvae  # noqa: TID251, the official code's

    return var, vqvae, basic_vae


class OfficialModels:
    """The official VAR and VQVAE with given weights."""

    def __init__(self, reference: tuple[Any, Any, Any], var: VARConfig, vqvae: VQVAEConfig) -> None:
        self.module, vqvae_module, basic_vae = reference
        self.vqvae = vqvae_module.VQVAE(
            vocab_size=vqvae.vocab_size,
            z_channels=vqvae.z_channels,
            ch=vqvae.ch,
            using_znorm=vqvae.using_znorm,
            quant_conv_ks=vqvae.quant_conv_ks,
            quant_resi=vqvae.quant_resi,
            share_quant_resi=vqvae.share_quant_resi,
            default_qresi_counts=vqvae.default_qresi_counts,
            v_patch_nums=vqvae.patch_nums,
        )
        # The official VQVAE fixes these options.
        options = {
            "ch": vqvae.ch,
            "ch_mult": vqvae.ch_mult,
            "num_res_blocks": vqvae.num_res_blocks,
            "z_channels": vqvae.z_channels,
            "using_sa": vqvae.using_sa,
            "using_mid_sa": vqvae.using_mid_sa,
        }
        self.vqvae.encoder, self.vqvae.decoder = basic_vae.Encoder(**options), basic_vae.Decoder(**options)
        self.var = self.module.VAR(
            self.vqvae,
            num_classes=var.num_classes,
            depth=var.depth,
            embed_dim=var.embed_dim,
            num_heads=var.num_heads,
            mlp_ratio=var.mlp_ratio,
            shared_aln=var.shared_aln,
            attn_l2_norm=var.attn_l2_norm,
            patch_nums=var.patch_nums,
            cond_drop_rate=0.0,
        )
        self.var.eval()
        self.vqvae.eval()

    def load(self, var_state: Mapping[str, torch.Tensor], vqvae_state: Mapping[str, torch.Tensor]) -> None:
        for model, state in ((self.var, var_state), (self.vqvae, vqvae_state)):
            missing, unexpected = model.load_state_dict(dict(state), strict=False)
            assert not unexpected, unexpected
            assert all(name.endswith(DERIVED) for name in missing), missing

    @torch.no_grad()
    def measure(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """As `parity.measure`."""
        forced, logits, f_hat, picture = self._generate(inputs.labels, forced=inputs.forced_tokens)
        greedy, *_ = self._generate(inputs.labels, top_k=1)
        results = {
            "logits": logits,
            "f_hat": f_hat,
            "picture": picture,
            "greedy_tokens": greedy,
            "encoded_tokens": torch.cat(self.vqvae.img_to_idxBl(inputs.pictures), dim=1),
        }
        assert torch.equal(forced, inputs.forced_tokens)
        return {name: tensor.numpy() for name, tensor in results.items()}

    def _generate(
        self, labels: torch.Tensor, forced: torch.Tensor | None = None, top_k: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The official autoregressive loop; tokens, guided logits, f_hat and picture."""
        official_sampler, decode = self.module.sample_with_top_k_top_p_, self.vqvae.fhat_to_img
        token_maps: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        f_hats: list[torch.Tensor] = []

        def sampler(stage_logits: torch.Tensor, **options: Any) -> torch.Tensor:
            begin = sum(token_map.shape[1] for token_map in token_maps)
            logits.append(stage_logits.clone())
            tokens = official_sampler(stage_logits, **options)[..., 0]
            if forced is not None:
                tokens = forced[:, begin : begin + tokens.shape[1]]
            token_maps.append(tokens)
            return tokens[..., None]

        def record_f_hat(f_hat: torch.Tensor) -> torch.Tensor:
            f_hats.append(f_hat.clone())
            return decode(f_hat)

        self.module.sample_with_top_k_top_p_, self.vqvae.fhat_to_img = sampler, record_f_hat
        try:
            picture = self.var.autoregressive_infer_cfg(len(labels), labels, g_seed=0, cfg=CFG_SCALE, top_k=top_k)
        finally:
            self.module.sample_with_top_k_top_p_, self.vqvae.fhat_to_img = official_sampler, decode
        return torch.cat(token_maps, dim=1), torch.cat(logits, dim=1), f_hats[0], picture


def make_case(reference: tuple[Any, Any, Any], name: str, var: VAR, vqvae: VQVAE) -> dict[str, np.ndarray]:
    """The official code's results for the weights of these models."""
    official = OfficialModels(reference, var.config, vqvae.config)
    official.load(var.state_dict(), vqvae.state_dict())
    inputs = random_inputs(var.config, vqvae.config)
    theirs = official.measure(inputs)
    report = differences(measure(var, vqvae, inputs), theirs)
    print(f"{name}: " + ", ".join(f"{what} {figure:.1e}" for what, figure in report.items()))
    return theirs


def make_encoder(reference: tuple[Any, Any, Any]) -> dict[str, np.ndarray]:
    """The official token maps of 8-bit pictures, which become numbers as in the official code's data loading."""
    arrays = {}
    for case in CASES:
        var, vqvae = models_of(case)
        official = OfficialModels(reference, var.config, vqvae.config)
        official.load(var.state_dict(), vqvae.state_dict())
        pictures = torch.from_numpy(random_pictures(vqvae.config)).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            arrays[case.name] = torch.cat(official.vqvae.img_to_idxBl(pictures * 2 - 1), dim=1).numpy()
    return arrays


def import_notebook(reference_dir: Path) -> dict[str, Any]:
    """What the official notebook of zero-shot editing defines."""
    cells = json.loads((reference_dir / "demo_zero_shot_edit.ipynb").read_text())["cells"]
    source = next(text for cell in cells if "def get_edit_mask" in (text := "".join(cell["source"])))
    notebook: dict[str, Any] = {}
    exec(source, notebook)
    return notebook


def make_edits(reference: tuple[Any, Any, Any], reference_dir: Path) -> dict[str, np.ndarray]:
    """The tokens that the official notebook's editing takes, greedily, and where it keeps those of the picture.

    By case and box: int64 [B, L] and bool [L], of no class for the first picture and class 3 for the second.
    """
    notebook = import_notebook(reference_dir)
    kept: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []
    sample, replace = notebook["sample_with_top_k_top_p_"], notebook["replace_embedding"]

    def record_sample(*arguments: Any, **options: Any) -> torch.Tensor:
        taken.append(sample(*arguments, **options))
        return taken[-1]

    def record_replace(mask: torch.Tensor, new: torch.Tensor, old: torch.Tensor, ph: int, pw: int) -> torch.Tensor:
        kept.append(replace(mask, torch.zeros_like(old), torch.ones_like(old), ph, pw)[0, 0].flatten() == 1)
        result: torch.Tensor = replace(mask, new, old, ph, pw)
        return result

    notebook |= {"sample_with_top_k_top_p_": record_sample, "replace_embedding": record_replace}
    arrays = {}
    for case in CASES:
        if case.name not in EDITED_CASES:
            continue
        var, vqvae = models_of(case)
        official = OfficialModels(reference, var.config, vqvae.config)
        official.load(var.state_dict(), vqvae.state_dict())
        pictures = torch.from_numpy(random_pictures(vqvae.config)).permute(0, 3, 1, 2).float() / 255
        labels = torch.tensor([var.config.num_classes, 3])
        for place, (box, inpainting) in enumerate(EDIT_BOXES):
            kept.clear()
            taken.clear()
            with torch.no_grad():
                tokens = official.vqvae.img_to_idxBl(pictures * 2 - 1, var.config.patch_nums)
                mask = notebook["get_edit_mask"](var.config.patch_nums, *box, "cpu", inpainting)
                notebook["autoregressive_infer_cfg_with_mask"](
                    official.var, len(labels), labels, g_seed=0, cfg=EDIT_CFG_SCALE, top_k=1,
                    input_img_tokens=tokens, edit_mask=mask,
                )  # fmt: skip
            of_stages = [torch.where(k, old, new[:, :, 0]) for k, old, new in zip(kept, tokens, taken, strict=True)]
            arrays[f"{case.name}.{place}.tokens"] = torch.cat(of_stages, dim=1).numpy()
            arrays[f"{case.name}.{place}.kept"] = torch.cat(kept).numpy()
    return arrays


def make_smooth(reference: tuple[Any, Any, Any], reference_dir: Path) -> dict[str, np.ndarray]:
    """f_hat, float32 [B, Cvae, h, w], that `more_smooth` leads to, of our noise: generated, and edited by the notebook.

    Tokens would tell nothing: the official code draws them, but goes on from the mixtures.
    """
    notebook, arrays = import_notebook(reference_dir), {}
    box, inpainting = EDIT_BOXES[0]
    for case in CASES:
        if case.name not in EDITED_CASES:
            continue
        var, vqvae = models_of(case)
        config = var.config
        official = OfficialModels(reference, config, vqvae.config)
        official.load(var.state_dict(), vqvae.state_dict())
        pictures = torch.from_numpy(random_pictures(vqvae.config)).permute(0, 3, 1, 2).float() / 255
        labels = torch.tensor([config.num_classes, 3])
        tokens = official.vqvae.img_to_idxBl(pictures * 2 - 1, config.patch_nums)
        mask = notebook["get_edit_mask"](config.patch_nums, *box, "cpu", inpainting)
        settings = {
            "g_seed": 0, "cfg": EDIT_CFG_SCALE, "top_k": SMOOTH_TOP_K, "top_p": SMOOTH_TOP_P, "more_smooth": True,
        }  # fmt: skip
        official.vqvae.fhat_to_img = torch.clone
        with torch.no_grad(), our_noise(len(labels), config):
            generated = official.var.autoregressive_infer_cfg(len(labels), labels, **settings)
        with torch.no_grad(), our_noise(len(labels), config):
            edited = notebook["autoregressive_infer_cfg_with_mask"](
                official.var, len(labels), labels, input_img_tokens=tokens, edit_mask=mask, **settings
            )
        for name, picture in (("generated", generated), ("edited", edited)):
            # What the official code does to a picture, undone.
            arrays[f"{case.name}.{name}"] = (picture * 2 - 1).numpy()
    return arrays


@contextmanager
def our_noise(images: int, config: VARConfig) -> Iterator[None]:
    """A block in which the exponential numbers of `gumbel_softmax_with_rng` are -log of our uniforms."""
    numbers = uniforms(SMOOTH_SEED, range(images), config.num_tokens * config.vocab_size, SMOOTHING)
    left = -torch.from_numpy(numbers).reshape(images, -1, config.vocab_size).log()

    def exponential_(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        nonlocal left
        length = tensor.shape[1]
        stage, left = left[:, :length], left[:, length:]
        return tensor.copy_(stage)

    with patch.object(torch.Tensor, "exponential_", exponential_):
        yield
    assert not left.shape[1]


def make_sampler(reference: tuple[Any, Any, Any]) -> dict[str, np.ndarray]:
    """The kept sets of the official sampler, and how often it draws each entry."""
    logits = sampler_logits()
    arrays = {}
    for top_k, top_p in SAMPLER_SETTINGS:
        filtered = torch.from_numpy(logits[None].copy())
        tokens = reference[0].sample_with_top_k_top_p_(
            filtered, top_k, top_p, torch.Generator().manual_seed(0), SAMPLER_DRAWS
        )[0]
        histogram = [np.bincount(row, minlength=logits.shape[1]) for row in tokens.numpy()]
        arrays[f"kept_{top_k}_{top_p}"] = np.isfinite(filtered[0].numpy())
        arrays[f"draws_{top_k}_{top_p}"] = np.array(histogram, np.int16)
    return arrays


def save(name: str, arrays: Mapping[str, np.ndarray]) -> None:
    narrow = {k: v.astype(np.int16) if np.issubdtype(v.dtype, np.integer) else v for k, v in arrays.items()}
    np.savez_compressed(GOLDENS / f"{name}.npz", **narrow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference_dir", type=Path)
    parser.add_argument("--checkpoints", type=Path, help=f"folder of {' and '.join(CHECKPOINT_FILES)}")
    parser.add_argument("--full-size", action="store_true", help="compare var-d16 instead")
    arguments = parser.parse_args()
    reference = import_official(arguments.reference_dir)

    if arguments.full_size:
        make_case(reference, "var-d16", *random_models("var-d16"))
        return
    for case in CASES:
        save(case.name, make_case(reference, case.name, *models_of(case)))
    save(ENCODER, make_encoder(reference))
    save(EDITS, make_edits(reference, arguments.reference_dir))
    save(SMOOTH, make_smooth(reference, arguments.reference_dir))
    save("sampler", make_sampler(reference))
    if arguments.checkpoints:
        models = load_models(*(arguments.checkpoints / name for name in CHECKPOINT_FILES))
        save("checkpoint", condense(make_case(reference, "checkpoint", *models)))


if __name__ == "__main__":
    main()
