"""Make the goldens of Infinity's VAE with the official code: https://github.com/FoundationVision/Infinity.

    python tests/goldens/make_infinity_vae_goldens.py REFERENCE_DIR

REFERENCE_DIR is a checkout; its tokenizer needs einops. Writes tests/goldens/infinity_vae.npz and prints how far our
VAE is from the official one. By case: the names of its tensors; of pictures, features float32 [B, d, h, w] and bits
uint8 [B, L, bits]; of their codes' sum, z float32 [d, h, w] and the decoded picture float32 [3, H, W], of the first.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from infinity_vae_parity import INFINITY_VAE, VAE_CASES, VAECase, as_numbers, vae_of, vae_pictures

from nextscale.models.infinity.vae_checkpoint import unwrapped


def import_official(reference_dir: Path) -> Any:
    """The official module bsq_vae.flux_vqgan, without what it needs for videos and data."""
    for name in ("imageio", "torchvision", "tqdm"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision"].transforms = types.ModuleType("transforms")  # type: ignore[attr-defined]
    # The folder above imports the transformer and what that needs.
    sys.path.insert(0, str(reference_dir / "infinity" / "models"))
    from bsq_vae import flux_vqgan

    return flux_vqgan


def official_vae(flux_vqgan: Any, case: VAECase) -> Any:
    """The official VAE of a case, with the settings of `bsq_vae/vae.py` and our weights."""
    config = case.config
    off = dict.fromkeys(
        ("use_vae", "use_freq_dec", "use_pxsf", "use_checkpoint", "preserve_norm", "ln_before_quant", "ln_init_by_sqrt",
         "use_decay_factor", "mask_out", "use_stochastic_depth", "keep_first_quant", "keep_last_quant",
         "remove_residual_detach", "use_out_phi", "use_out_phi_res", "random_flip", "random_flip_1lvl",
         "drop_when_test"),
        False,
    )  # fmt: skip
    zero = dict.fromkeys(
        ("drop_rate", "z_drop", "gan_feat_weight", "video_perceptual_weight", "l1_weight", "kl_weight", "lfq_weight",
         "image_gan_weight", "video_gan_weight", "perceptual_weight", "flux_weight", "cycle_weight",
         "cycle_feat_weight", "cycle_gan_weight", "entropy_loss_weight", "commitment_loss_weight"),
        0.0,
    )  # fmt: skip
    args = argparse.Namespace(
        **off, **zero, base_ch=config.ch, encoder_ch_mult=list(config.ch_mult), decoder_ch_mult=list(config.ch_mult),
        num_res_blocks=config.num_res_blocks, codebook_dim=config.latent_channels,
        codebook_size=2**config.latent_channels, patch_size=config.downsample, temporal_patch_size=4, cnn_type="2d",
        conv_in_out_2d="no", conv_inner_2d="no", res_conv_2d="no", cnn_attention="no", cnn_norm_axis="spatial",
        quantizer_type="MultiScaleBSQ", new_quant=True, diversity_gamma=1, schedule_mode="dynamic", flip_prob=0.5,
        flip_mode="stochastic", max_flip_lvl=1, flip_lvl_idx=0, drop_lvl_idx=0, drop_lvl_num=1, recon_loss_type="l1",
        encoder_dtype="fp32",
    )  # fmt: skip
    vae = flux_vqgan.AutoEncoder(args).eval()
    ours = vae_of(case).state_dict()
    masks = {name: tensor for name, tensor in vae.state_dict().items() if name.endswith("lfq.mask")}
    weights = {name: ours.pop(unwrapped(name)) for name in vae.state_dict() if name not in masks}
    assert not ours, list(ours)
    vae.load_state_dict(weights | masks)
    return vae


@torch.no_grad()
def make_case(flux_vqgan: Any, case: VAECase) -> dict[str, np.ndarray]:
    """The official code's results for a case."""
    vae, patch = official_vae(flux_vqgan, case), case.config.patch
    schedule = [(1, patch * height, patch * width) for height, width in case.stage_sizes]
    features, z, _, bits, _, _ = vae.encode(as_numbers(vae_pictures(case)), schedule)
    # As `flip_requant` has them: [B, 1, h, w, d] each, and the bits of a patch in one token.
    of_stages = [F.pixel_unshuffle(stage[:, 0].permute(0, 3, 1, 2), patch).flatten(2).mT for stage in bits]
    picture = vae.decode(z)
    return {
        "names": np.array(list(vae.state_dict())),
        "features": features.numpy(),
        "bits": torch.cat(of_stages, dim=1).numpy().astype(np.uint8),
        "z": z[0].numpy(),
        "picture": picture[0].numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference_dir", type=Path)
    flux_vqgan = import_official(parser.parse_args().reference_dir)
    arrays = {}
    for case in VAE_CASES:
        theirs = make_case(flux_vqgan, case)
        vae = vae_of(case)
        with torch.no_grad():
            features = vae.features(as_numbers(vae_pictures(case))).numpy()
            bits = vae.encode(as_numbers(vae_pictures(case)), case.stage_sizes).numpy()
            picture = vae.decode(torch.from_numpy(theirs["z"])[None])[0].numpy()
        for what, ours in (("features", features), ("picture", picture)):
            print(f"{case.name}: {what} {np.abs(ours - theirs[what]).max() / np.ptp(theirs[what]):.1e}")
        print(f"{case.name}: bits that differ {np.mean(bits != theirs['bits']):.1e}, ones {np.mean(bits):.2f}")
        arrays |= {f"{case.name}.{what}": array for what, array in theirs.items()}
    np.savez_compressed(INFINITY_VAE, **arrays)


if __name__ == "__main__":
    main()
