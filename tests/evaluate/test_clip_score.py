"""The CLIP score: on a stand-in for transformers, and on a small random CLIP of transformers itself."""

from __future__ import annotations

import shutil
import string
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale.evaluate.prompt_scores import CLIP_BATCH, ClipScore
from nextscale.runtime._errors import NextscaleError

MOST_TOKENS = 12
PICTURES = np.random.default_rng(0).integers(0, 256, (CLIP_BATCH + 2, 12, 20, 3), np.uint8)
PROMPTS = ["a photo of a cat"] * CLIP_BATCH + ["dog", "more letters than the model takes"]


class FakeClip:
    """Stands for the three parts of a CLIP: a picture's feature is its brightness, a text's its number of letters."""

    config = SimpleNamespace(
        vision_config=SimpleNamespace(num_hidden_layers=12, patch_size=32),
        text_config=SimpleNamespace(max_position_embeddings=MOST_TOKENS),
    )
    missing: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, folder: Path, *, local_files_only: bool, output_loading_info: bool = False) -> object:
        assert local_files_only
        return (cls(), {"missing_keys": cls.missing}) if output_loading_info else cls()

    def eval(self) -> None:
        """As torch's."""

    def __call__(self, *given: list[Any], **features: Any) -> Any:
        if not given:
            return SimpleNamespace(image_embeds=features["pictures"], text_embeds=features["texts"])
        if isinstance(given[0][0], str):
            return {"texts": torch.tensor([[min(len(text), features["max_length"])] for text in given[0]])}
        return {"pictures": torch.tensor([[np.asarray(image).mean()] for image in given[0]])}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of what stands for transformers."""
    package, utils = ModuleType("transformers"), ModuleType("transformers.utils")
    package.__dict__.update(dict.fromkeys(("CLIPImageProcessorPil", "CLIPModel", "CLIPTokenizer"), FakeClip))
    quiet = SimpleNamespace(set_verbosity_error=lambda: None, disable_progress_bar=lambda: None)
    utils.__dict__["logging"] = quiet
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.utils", utils)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_a_score_is_the_product_of_the_features_of_each_picture_and_its_text(folder: Path) -> None:
    found = ClipScore(folder)
    lengths = np.array([min(len(text), MOST_TOKENS) for text in PROMPTS])
    np.testing.assert_allclose(found(PICTURES, PROMPTS), PICTURES.mean((1, 2, 3)) * lengths, rtol=1e-6)
    assert found.name.startswith("CLIP of 12 layers and 32-pixel patches ")
    (folder / "model.safetensors").write_text("others")
    assert ClipScore(folder).name != found.name


def test_what_is_no_clip_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeClip, "missing", ("visual_projection.weight", "text_projection.weight"))
    with pytest.raises(NextscaleError, match=r"no CLIP of transformers: it has no text_projection\.weight$"):
        ClipScore(folder)

    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("no weights\nat all")

    monkeypatch.setattr(FakeClip, "from_pretrained", fail)
    with pytest.raises(NextscaleError, match=r"no CLIP of transformers: no weights at all$"):
        ClipScore(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(NextscaleError, match=r"tokenizer\.json: no such file"):
        ClipScore(folder)


def test_a_missing_package_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NextscaleError, match=r'--clip needs transformers, .+ pip install "nextscale\[clip\]"$'):
        ClipScore(folder)


def test_scores_are_those_of_transformers_own_clip(tmp_path: Path) -> None:
    """A small random one, whose features are computed one by one."""
    transformers = pytest.importorskip("transformers")
    letters = [letter + end for end in ("", "</w>") for letter in string.ascii_lowercase]
    vocabulary = {token: i for i, token in enumerate((*letters, "<|startoftext|>", "<|endoftext|>"))}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    start, end = len(letters), len(letters) + 1
    tokens = {"vocab_size": end + 1, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(
        text_config={**sizes, **tokens, "max_position_embeddings": MOST_TOKENS},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    prepare = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    for part in (model, tokenizer, prepare):
        part.save_pretrained(tmp_path)

    def unit(features: Tensor) -> Tensor:
        return features / features.norm()

    expected = []
    for image, text in zip(PICTURES, PROMPTS, strict=True):
        ids = tokenizer([text], truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        pixels = prepare([Image.fromarray(image)], return_tensors="pt")
        with torch.inference_mode():
            picture, words = model.get_image_features(**pixels), model.get_text_features(**ids)
        expected.append(float((unit(picture.pooler_output) * unit(words.pooler_output)).sum()))
    np.testing.assert_allclose(ClipScore(tmp_path)(PICTURES, PROMPTS), expected, atol=1e-6)

    other = shutil.copytree(tmp_path, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(NextscaleError, match="no CLIP of transformers: "):
        ClipScore(other)
