"""The BSQ VAE against the official code's numbers, and its bits against the definition in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nextscale.models.infinity.bsq_vae import BSQVAEConfig, bits_of_features
from tests.goldens.infinity_vae_parity import INFINITY_VAE, VAE_CASES, VAECase, as_numbers, vae_of, vae_pictures

# Each of some 50 layers rounds float32 numbers, 6e-8 each, in its own order; what was found is 3e-6 at most.
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=VAE_CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> VAECase:
    found: VAECase = request.param
    return found


@pytest.fixture(scope="module")
def golden(case: VAECase) -> dict[str, NDArray]:
    with np.load(INFINITY_VAE) as goldens:
        prefix = f"{case.name}."
        return {name.removeprefix(prefix): goldens[name] for name in goldens.files if name.startswith(prefix)}


def assert_near(found: torch.Tensor, golden: NDArray) -> None:
    assert found.shape == golden.shape
    assert np.abs(found.numpy() - golden).max() <= TOLERANCE * np.ptp(golden)


def test_features_and_bits_are_the_official_ones(case: VAECase, golden: dict[str, NDArray]) -> None:
    vae, pictures = vae_of(case), as_numbers(vae_pictures(case))
    assert_near(vae.features(pictures), golden["features"])
    bits = vae.encode(pictures, case.stage_sizes)
    assert bits.dtype == torch.int64
    np.testing.assert_array_equal(bits.numpy(), golden["bits"])
    assert bits.shape == (2, sum(h * w for h, w in case.stage_sizes), case.config.token_bits)


def test_the_picture_is_the_official_one(case: VAECase, golden: dict[str, NDArray]) -> None:
    assert_near(vae_of(case).decode(torch.from_numpy(golden["z"])[None])[0], golden["picture"])


def test_every_stage_of_the_goldens_matters(case: VAECase, golden: dict[str, NDArray]) -> None:
    """No stage repeats what the one before said: that would hide a wrong residual."""
    begin = 0
    for height, width in case.stage_sizes:
        share = golden["bits"][:, begin : begin + height * width].mean()
        assert 0.2 < share < 0.8
        begin += height * width
    signs = golden["features"].transpose(0, 2, 3, 1) > 0
    if case.config.patch == 1:
        height, width = case.stage_sizes[-1]
        last = golden["bits"][:, -height * width :].reshape(signs.shape)
        assert np.mean(signs != last) > 0.02  # as many as earlier stages make differ


def area(x: NDArray, height: int, width: int) -> NDArray:
    """The mean over the cells that an output touches: [d, h, w] -> [d, height, width]."""
    y = np.empty((len(x), height, width))
    for i, j in np.ndindex(height, width):
        lines = slice(i * x.shape[1] // height, -(-(i + 1) * x.shape[1] // height))
        columns = slice(j * x.shape[2] // width, -(-(j + 1) * x.shape[2] // width))
        y[:, i, j] = x[:, lines, columns].mean((1, 2))
    return y


def bilinear(x: NDArray, height: int, width: int) -> NDArray:
    """Between the centres of cells, constant beyond the outermost: [d, h, w] -> [d, height, width]."""
    for axis, size in ((1, height), (2, width)):
        places = np.clip((np.arange(size) + 0.5) * x.shape[axis] / size - 0.5, 0, x.shape[axis] - 1)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
        x = (1 - share) * x.take(low, axis) + share * x.take(high, axis)
    return x


@pytest.mark.parametrize("seed", range(3))
def test_bits_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    channels, patch = int(rng.integers(1, 6)), int(rng.integers(1, 3))
    sides = np.sort(rng.integers(1, 8, (4, 2)), axis=0)
    sizes = [(int(height), int(width)) for height, width in sides]
    size = patch * sizes[-1][0], patch * sizes[-1][1]
    features = rng.standard_normal((channels, *size)).astype(np.float32) * channels**-0.5
    found = bits_of_features(torch.from_numpy(features)[None], sizes, patch)[0].numpy()

    residual, expected = features.astype(np.float64), []
    for height, width in sizes:
        bits = area(residual, patch * height, patch * width) > 0
        residual = residual - bilinear((2 * bits - 1) / channels**0.5, *size)
        parts = bits.reshape(channels, height, patch, width, patch)
        expected.append(parts.transpose(1, 3, 0, 2, 4).reshape(height * width, -1))
    np.testing.assert_array_equal(found, np.concatenate(expected), err_msg=f"seed {seed}, {sizes}, patch {patch}")


def test_zero_is_no_one() -> None:
    assert bits_of_features(torch.zeros(1, 3, 2, 2), [(2, 2)]).sum() == 0


def test_encoding_does_not_change_its_input() -> None:
    features = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    before = features.clone()
    bits_of_features(features, [(1, 1), (2, 2), (4, 4)])
    assert torch.equal(features, before)


def test_a_picture_of_another_size_is_refused() -> None:
    case = next(case for case in VAE_CASES if case.name == "tall")
    with pytest.raises(ValueError, match=r"latent must be 16 x 12, found \[12, 12\]"):
        vae_of(case).encode(torch.zeros(1, 3, 24, 24), case.stage_sizes)


def test_decoded_pictures_stay_in_range() -> None:
    case = VAE_CASES[1]
    pictures = vae_of(case).decode(torch.full((1, 16, 3, 5), 20.0))
    assert pictures.shape == (1, 3, 6, 10)
    assert pictures.abs().max() == 1


def test_the_official_variants() -> None:
    assert (BSQVAEConfig().downsample, BSQVAEConfig().token_bits) == (16, 32)
    patchified = BSQVAEConfig(14, ch_mult=(1, 2, 4, 4), patch=2)
    assert (patchified.downsample, patchified.token_bits) == (8, 56)
