"""Second moments of what kernels see, against torch's modules and unfold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny_model import ONE_THREAD, tiny_models

from nextscale.calib_data.observe_moments import moment_groups, observe_moments
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.encoder_graph import build_features_graph
from nextscale.graph_passes.gptq import gptq
from nextscale.graph_passes.observe_patches import patches_of
from nextscale.graph_passes.qparams import WEIGHT_QMAX, WEIGHT_QMIN, WeightQParams
from nextscale.graph_passes.quantize_autoencoder import integer_convolutions
from nextscale.models.var.vqvae import VQVAE


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return tiny_models()[1]


@pytest.fixture(scope="module")
def pictures(vqvae: VQVAE) -> NDArray[np.uint8]:
    side = vqvae.config.image_size
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)


def patches_in_torch(vqvae: VQVAE, pictures: NDArray[np.uint8], name: str) -> NDArray[np.float64]:
    """[n, K] of all positions of all pictures that the module `name` of the encoder reads."""
    module, read = vqvae.get_submodule(name), list[torch.Tensor]()
    hook = module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        vqvae.features(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1)
    hook.remove()
    (x,) = read
    assert isinstance(module, torch.nn.Conv2d)
    assert isinstance(module.padding, tuple)
    unfolded = F.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride)
    return unfolded.movedim(1, 2).flatten(0, 1).double().numpy()


def test_moments_are_those_of_torch(vqvae: VQVAE, pictures: NDArray[np.uint8]) -> None:
    model = build_features_graph(vqvae)
    names = integer_convolutions(model)
    found = observe_moments(model, names, [{"images": pictures}], options=ONE_THREAD)
    assert list(found) == names
    for name, moments in found.items():
        x = patches_in_torch(vqvae, pictures, name)
        wanted = x.T @ x / len(x)
        assert moments.dtype == np.float32
        # Values of float32 that differ by some roundings each.
        np.testing.assert_allclose(moments, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


def test_a_batch_is_its_pictures(vqvae: VQVAE, pictures: NDArray[np.uint8]) -> None:
    model = build_features_graph(vqvae)
    names, told = integer_convolutions(model), list[int]()
    together = observe_moments(model, names, [{"images": pictures}], options=ONE_THREAD, on_images=told.append)
    assert told == [3]
    feeds = ({"images": picture[None]} for picture in pictures)
    alone = observe_moments(model, names, feeds, options=ONE_THREAD, on_images=told.append)
    assert told == [3, 1, 2, 3]
    for name in names:
        np.testing.assert_allclose(together[name], alone[name], rtol=0, atol=1e-5 * np.abs(alone[name]).max())


def test_those_behind_an_upsampling_are_of_the_small_picture(vqvae: VQVAE) -> None:
    model, side = build_decoder_graph(vqvae), vqvae.config.patch_nums[-1]
    f_hat = np.random.default_rng(0).standard_normal((3, vqvae.config.z_channels, side, side)).astype(np.float32)
    name = "decoder.up.1.upsample.conv"
    found = observe_moments(model, [name], [{"f_hat": f_hat}], options=ONE_THREAD)[name]
    read = list[torch.Tensor]()
    hook = vqvae.get_submodule("decoder.up.1.upsample").register_forward_pre_hook(lambda _, x: read.append(x[0]))
    with torch.no_grad():
        vqvae.decoder(vqvae.post_quant_conv(torch.from_numpy(f_hat)))
    hook.remove()
    x = F.unfold(read[0], 2, padding=1).movedim(1, 2).flatten(0, 1).double().numpy()
    wanted = x.T @ x / len(x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_gptq_gains_by_them(vqvae: VQVAE, pictures: NDArray[np.uint8]) -> None:
    model, name = build_features_graph(vqvae), "encoder.mid.block_1.conv1"
    moments = observe_moments(model, [name], [{"images": pictures}], options=ONE_THREAD)[name]
    weight = vqvae.get_parameter(f"{name}.weight").detach().flatten(1).numpy()
    qparams = WeightQParams.choose(weight, 0, 8, "max")
    x = patches_in_torch(vqvae, pictures, name)
    before, after = (
        np.square(x @ (weight - codes * qparams.scale[:, None]).T).sum()
        for codes in (qparams.quantize(weight, 0), gptq(weight, moments, qparams.scale, WEIGHT_QMIN, WEIGHT_QMAX))
    )
    assert after < 0.5 * before


def test_groups_take_the_bytes_that_they_may(vqvae: VQVAE) -> None:
    model = build_features_graph(vqvae)
    names = integer_convolutions(model)
    sizes = {name: 4 * patches.length**2 for name, patches in patches_of(model, names).items()}
    assert moment_groups(model, names, sum(sizes.values())) == [names]
    assert moment_groups(model, names, 1) == [[name] for name in names]
    most = max(sizes.values())
    groups = moment_groups(model, names, most)
    assert [name for group in groups for name in group] == names
    totals = [sum(sizes[name] for name in group) for group in groups]
    assert max(totals) <= most
    assert all(total + sizes[after[0]] > most for total, after in zip(totals, groups[1:], strict=False))


def test_no_images_and_unknown_names_are_refused(vqvae: VQVAE) -> None:
    model = build_features_graph(vqvae)
    with pytest.raises(ValueError, match="no images to observe"):
        observe_moments(model, ["encoder.mid.attn_1.qkv"], [], options=ONE_THREAD)
    with pytest.raises(ValueError, match="no convolution of the graph is named 'other'"):
        observe_moments(model, ["other"], [], options=ONE_THREAD)


def test_the_model_stays_as_it_was(vqvae: VQVAE, pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    model = build_features_graph(vqvae)
    before = ir.to_proto(model).SerializeToString()
    observe_moments(model, ["encoder.mid.attn_1.qkv"], [{"images": pictures}], weights=tmp_path, options=ONE_THREAD)
    assert ir.to_proto(model).SerializeToString() == before
