"""The adapters of ImageReward and HPSv2.1, on stand-ins for their packages: what these are asked, and what is read."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale.evaluate.prompt_scores import HumanPreference, ImageReward
from nextscale.runtime._errors import NextscaleError

PICTURES = np.stack([np.full((4, 6, 3), grey, np.uint8) for grey in (51, 102, 204)])
PROMPTS = ["a", "bb", "ccc"]


def module(name: str, **contents: object) -> ModuleType:
    found = ModuleType(name)
    vars(found).update(contents)
    return found


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the authors publish it, and a package whose reward is brightness times the prompt's length."""
    (tmp_path / "ImageReward.pt").write_bytes(b"weights")
    (tmp_path / "med_config.json").write_text("{}")

    def score(prompt: str, image: Image.Image) -> float:
        return len(prompt) * np.asarray(image).mean() / 255

    def load(name: str, device: str, med_config: str) -> SimpleNamespace:
        assert (name, med_config) == (str(tmp_path / "ImageReward.pt"), str(tmp_path / "med_config.json"))
        assert device == "cpu"
        return SimpleNamespace(score=score)

    monkeypatch.setitem(sys.modules, "ImageReward", module("ImageReward", load=load))
    return tmp_path


def test_a_reward_is_of_each_picture_and_its_prompt(reward: Path) -> None:
    found = ImageReward(reward)
    np.testing.assert_allclose(found(PICTURES, PROMPTS), [0.2, 0.8, 2.4])
    assert found.name.startswith("ImageReward ")
    (reward / "ImageReward.pt").write_bytes(b"others")
    assert ImageReward(reward).name != found.name


class Clip(torch.nn.Module):
    """Features of a picture are its mean and 0; of a text its length's inverse and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        pictures = torch.stack([image.mean((1, 2, 3)), torch.zeros(len(image))], 1)
        texts = torch.stack([1 / text[:, 0], torch.ones(len(text))], 1)
        return {"image_features": self.factor * pictures, "text_features": texts}


@pytest.fixture
def hps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package with such a model, and a file of its weights."""
    models: dict[str, object] = {}

    def initialize_model() -> None:
        models["model"] = Clip()
        models["preprocess_val"] = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    def get_tokenizer(name: str) -> object:
        assert name == "ViT-H-14"
        return lambda texts: torch.tensor([[float(len(text))] for text in texts])

    package = module(
        "hpsv2.img_score", initialize_model=initialize_model, model_dict=models, get_tokenizer=get_tokenizer
    )
    monkeypatch.setitem(sys.modules, "hpsv2", module("hpsv2", img_score=package))
    monkeypatch.setitem(sys.modules, "hpsv2.img_score", package)
    path = tmp_path / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {"factor": torch.full((1,), 0.5)}}, path)
    return path


def test_a_preference_is_the_product_of_features_in_hundredths(hps: Path) -> None:
    """With the file's weights, a factor of a half."""
    found = HumanPreference(hps)
    np.testing.assert_allclose(found(PICTURES, PROMPTS), [100 * 0.5 * 0.2, 100 * 0.5 * 0.4 / 2, 100 * 0.5 * 0.8 / 3])
    assert found.name.startswith("HPSv2.1 ")


def test_other_weights_are_refused(hps: Path) -> None:
    for content in ({"state_dict": {"other": torch.zeros(1)}}, {}):
        torch.save(content, hps)
        with pytest.raises(NextscaleError, match=r"compressed\.pt: no weights of HPSv2\.1: "):
            HumanPreference(hps)


def test_a_missing_file_is_one_line(reward: Path, tmp_path: Path) -> None:
    (reward / "med_config.json").unlink()
    with pytest.raises(NextscaleError, match=r"med_config\.json: no such file"):
        ImageReward(reward)
    with pytest.raises(NextscaleError, match=r"none\.pt: no such file"):
        HumanPreference(tmp_path / "none.pt")


def test_a_missing_package_is_one_line(reward: Path, hps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    monkeypatch.setitem(sys.modules, "hpsv2", None)
    with pytest.raises(NextscaleError, match=r"--image-reward needs .+ pip install image-reward==1\.5"):
        ImageReward(reward)
    with pytest.raises(NextscaleError, match=r"--hps needs .+ pip install hpsv2"):
        HumanPreference(hps)


def test_a_package_that_cannot_be_imported_is_one_line(
    reward: Path, hps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that asks another package for a name that its newer versions do not have."""

    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ImportError("cannot import name 'x'\nfrom 'y'")

    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "ImageReward":
                raise ImportError("cannot import name 'x'\nfrom 'y'")

    monkeypatch.setitem(sys.modules, "hpsv2", Broken("hpsv2"))
    monkeypatch.delitem(sys.modules, "ImageReward")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(NextscaleError, match=r"^--image-reward: .+ cannot be imported: cannot import name 'x' from"):
        ImageReward(reward)
    with pytest.raises(NextscaleError, match=r"^--hps: .+ cannot be imported: cannot import name 'x' from 'y'$"):
        HumanPreference(hps)


@pytest.mark.parametrize("error", [OSError("no network\nat all"), RuntimeError()], ids=["fetching", "no message"])
def test_a_package_that_cannot_load_its_model_is_one_line(
    reward: Path, hps: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    why = "no network at all" if str(error) else "RuntimeError"
    monkeypatch.setattr(sys.modules["ImageReward"], "load", fail)
    with pytest.raises(NextscaleError, match=rf"ImageReward\.pt: image-reward cannot load it: {why}$"):
        ImageReward(reward)
    monkeypatch.setattr(sys.modules["hpsv2.img_score"], "initialize_model", fail)
    with pytest.raises(NextscaleError, match=rf"^--hps: hpsv2 cannot make its model: {why}$"):
        HumanPreference(hps)


def test_an_error_of_no_message_is_told_by_its_type(hps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise EOFError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(NextscaleError, match=r"compressed\.pt: no weights of HPSv2\.1: EOFError$"):
        HumanPreference(hps)
