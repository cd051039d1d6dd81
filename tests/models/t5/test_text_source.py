"""Text encoders with their tokenizers: which one a folder has, features of prompts, and each refusal."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from infinity_bundle import TEXT
from infinity_checkpoints import PIECES, save_text_encoder

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.random_weights import random_t5
from nextscale.models.t5.text_source import load_text_source, random_text_source
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import TokenizerInfo

CHANNELS = TEXT.embed_dim
PROMPTS = ["a fox", "ünë", "a fox"]
needs_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="sentencepiece is not installed"
)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[T5Config], Path]:
    def make(config: T5Config) -> Path:
        save_text_encoder(tmp_path / "text", config)
        return tmp_path / "text"

    return make


def test_byt5_reads_bytes(folder: Callable[[T5Config], Path]) -> None:
    source = load_text_source(folder(TEXT), CHANNELS, 64)
    assert (source.tokenizer, source.tokenizer_file) == (TokenizerInfo("bytes", 64), None)
    for prompt, found in zip(PROMPTS, source.features(PROMPTS), strict=True):
        ids = torch.tensor([[*(byte + 3 for byte in prompt.encode()), 1]])
        np.testing.assert_array_equal(found, random_t5(TEXT)(ids)[0].numpy())


def test_a_list_of_words_is_found(folder: Callable[[T5Config], Path]) -> None:
    path = folder(TEXT)
    assert load_text_source(path, CHANNELS, 64).words_file is None
    (path / "words.txt").write_text("fox\n")
    assert load_text_source(path, CHANNELS, 64).words_file == path / "words.txt"
    (path / "words.txt").write_bytes(b"\xff")
    with pytest.raises(NextscaleError, match=r"words\.txt: no UTF-8; expected words, one a line"):
        load_text_source(path, CHANNELS, 64)


@needs_sentencepiece
def test_a_folder_with_pieces_reads_them(folder: Callable[[T5Config], Path]) -> None:
    config = replace(TEXT, vocab_size=1008)
    path = folder(config)
    (path / "spiece.model").write_bytes(PIECES.read_bytes())
    source = load_text_source(path, CHANNELS, 512)
    assert source.tokenizer == TokenizerInfo("sentencepiece", 512, "spiece.model")
    assert source.tokenizer_file == path / "spiece.model"
    (found,) = source.features(["a red apple"])
    ids = torch.tensor([[8, 3, 164, 3, 149, 192, 48, 1]])  # sentencepiece's own, and the end
    np.testing.assert_array_equal(found, random_t5(config)(ids)[0].numpy())


def test_another_width_is_refused_before_the_weights_are_read(folder: Callable[[T5Config], Path]) -> None:
    path = folder(TEXT)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"features of 16 channels, the transformer reads 2048; give the text"):
        load_text_source(path, 2048, 512)


def test_a_folder_without_a_tokenizer_is_refused(folder: Callable[[T5Config], Path]) -> None:
    with pytest.raises(CheckpointError, match=r"has no spiece\.model; copy it there"):
        load_text_source(folder(replace(TEXT, vocab_size=1008)), CHANNELS, 512)


def test_more_pieces_than_embeddings_are_refused_before_the_weights_are_read(
    folder: Callable[[T5Config], Path],
) -> None:
    pytest.importorskip("sentencepiece")
    path = folder(replace(TEXT, vocab_size=999))
    (path / "spiece.model").write_bytes(PIECES.read_bytes())
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"spiece\.model has 1000 pieces, the encoder 999 embeddings; copy it"):
        load_text_source(path, CHANNELS, 512)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load_text_source(tmp_path / "none", CHANNELS, 512)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", "b" * 64], "prompt 2 of calibration: prompt .* has 65"),
        ([""], "prompt 1 of calibration: .* empty"),
    ],
)
def test_prompts_that_cannot_be_read_are_told(
    folder: Callable[[T5Config], Path], prompts: list[str], message: str
) -> None:
    with pytest.raises(NextscaleError, match=message):
        load_text_source(folder(TEXT), CHANNELS, 64).features(prompts)


def test_random_encoders_are_presets_that_read_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("nextscale.models.t5.presets", fromlist=["PRESETS"]).PRESETS, "tiny", TEXT)
    source = random_text_source("tiny", CHANNELS, 64, seed=3)
    assert source.tokenizer == TokenizerInfo("bytes", 64)
    expected = random_t5(TEXT, 3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in source.encoder.state_dict().items())


@pytest.mark.parametrize(
    ("preset", "message"),
    [("flan-t5-x", "did you mean flan-t5-xl"), ("flan-t5-small", "features of 512 channels, the transformer reads 16")],
)
def test_random_encoders_of_another_name_or_width_are_refused(preset: str, message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        random_text_source(preset, CHANNELS, 64, seed=0)
