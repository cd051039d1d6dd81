"""Ids against transformers' tokenizers (tests/goldens/make_text_goldens.py), and each refusal."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.runtime._errors import BundleError, NextscaleError, RequestError
from nextscale.runtime._tokenizer import END, ByteTokenizer, SentencePieceTokenizer, Tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens"
MODEL, MAX_TOKENS = GOLDENS / "small.model", 512
CASES: list[dict[str, Any]] = json.loads((GOLDENS / "text_tokens.json").read_text(encoding="utf-8"))
HAS_SENTENCEPIECE = importlib.util.find_spec("sentencepiece") is not None
needs_sentencepiece = pytest.mark.skipif(not HAS_SENTENCEPIECE, reason="sentencepiece is not installed")
KINDS: dict[str, Callable[[int], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "sentencepiece": lambda max_tokens: SentencePieceTokenizer(MODEL, max_tokens),
}


@pytest.fixture(params=["bytes", pytest.param("sentencepiece", marks=needs_sentencepiece)])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["prompt"])[:30])
def test_ids_are_those_of_transformers(kind: str, case: dict[str, Any]) -> None:
    found = KINDS[kind](MAX_TOKENS).encode(case["prompt"])
    assert found.dtype == np.int64
    assert found.tolist() == case[kind]


def test_the_goldens_have_known_and_unknown_pieces_of_all_lengths() -> None:
    ids = np.concatenate([case["sentencepiece"] for case in CASES])
    assert len(np.unique(ids)) > 100
    assert {2, END} < set(ids)
    assert 0 not in ids


def test_every_character_that_can_be_has_its_bytes() -> None:
    """The whole of Unicode but for surrogates, against UTF-8's own encoder a character at a time."""
    characters = [chr(code) for code in [*range(0, 0xD800, 97), *range(0xE000, 0x110000, 4001)]]
    found = ByteTokenizer(10_000).encode("".join(characters))
    assert found.tolist() == [byte + 3 for character in characters for byte in character.encode()] + [END]


@pytest.mark.parametrize("prompt", ["fox</s>castle", "<extra_id_0> fox", "<pad>", "fox </s>", "<unk>"])
def test_special_words_are_text(kind: str, prompt: str) -> None:
    """transformers would make special tokens of them; here nothing but END ends a prompt, once."""
    found = KINDS[kind](MAX_TOKENS).encode(prompt)
    assert found[-1] == END
    assert END not in found[:-1]
    assert 0 not in found
    assert len(found) > 4


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t", "\u200b\ufeff", "\x01\x02"])
def test_a_prompt_without_tokens_is_refused(kind: str, prompt: str) -> None:
    if kind == "bytes" and prompt:
        assert len(ByteTokenizer(MAX_TOKENS).encode(prompt)) == len(prompt.encode()) + 1
        return
    with pytest.raises(RequestError, match=r'^prompt ".*" is empty: expected a description in words$') as caught:
        KINDS[kind](MAX_TOKENS).encode(prompt)
    assert str(caught.value).isprintable()


def test_a_prompt_may_have_max_tokens_and_no_more(kind: str) -> None:
    tokens = len(KINDS[kind](MAX_TOKENS).encode("A red fox sleeps."))
    assert len(KINDS[kind](tokens).encode("A red fox sleeps.")) == tokens
    message = f'^prompt "A red fox sleeps." has {tokens} tokens, its end among them; expected at most {tokens - 1}: '
    with pytest.raises(RequestError, match=message + "shorten it$"):
        KINDS[kind](tokens - 1).encode("A red fox sleeps.")


def test_a_long_prompt_is_not_shown_whole() -> None:
    with pytest.raises(RequestError, match=r'^prompt "fox\\x1b.*…" has 10001 tokens, its end among them') as caught:
        ByteTokenizer(MAX_TOKENS).encode("fox\x1b\n" * 2000)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_bytes_of_a_command_line_that_are_no_text_are_refused(kind: str) -> None:
    with pytest.raises(
        RequestError, match=r"^prompt .*: character 4 is byte 0xFF of no UTF-8; expected valid Unicode$"
    ):
        KINDS[kind](MAX_TOKENS).encode(os.fsdecode(b"fox \xff"))


@pytest.mark.parametrize(("prompt", "place"), [("fox \ud83d", 4), ("\udc7f", 0), ("\ude00\ud83d", 0)], ids=ascii)
def test_half_a_character_is_refused(kind: str, prompt: str, place: int) -> None:
    with pytest.raises(
        RequestError, match=rf"character {place} is half of one \(a lone surrogate\); expected"
    ) as caught:
        KINDS[kind](MAX_TOKENS).encode(prompt)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("prompt", [None, 3, b"fox", ["fox"], np.array("fox")], ids=lambda value: type(value).__name__)
def test_what_is_no_text_is_refused(kind: str, prompt: Any) -> None:
    with pytest.raises(RequestError, match=r"^prompt .*: expected text$"):
        KINDS[kind](MAX_TOKENS).encode(prompt)


def test_a_tokenizer_goes_to_another_process(kind: str) -> None:
    tokenizer = KINDS[kind](MAX_TOKENS)
    again: Tokenizer = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again.encode("A red fox"), tokenizer.encode("A red fox"))


def test_without_sentencepiece_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(NextscaleError, match=r"sentencepiece: pip install 'nextscale\[text\]'; or give text_features$"):
        SentencePieceTokenizer(MODEL, MAX_TOKENS)
    assert ByteTokenizer(MAX_TOKENS).encode("a").tolist() == [100, END]


@needs_sentencepiece
def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"spiece\.model cannot be read: No such file"):
        SentencePieceTokenizer(tmp_path / "spiece.model", MAX_TOKENS)


@needs_sentencepiece
def test_a_pipe_is_refused(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(BundleError, match=r"spiece\.model: not a regular file"):
        SentencePieceTokenizer(make_fifo(tmp_path / "spiece.model"), MAX_TOKENS)


@needs_sentencepiece
@pytest.mark.parametrize("content", [b"", b"garbage", MODEL.read_bytes()[:-1], MODEL.read_bytes()[:3000]])
def test_a_damaged_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"spiece\.model is no sentencepiece model, or a damaged one") as caught:
        SentencePieceTokenizer(path, MAX_TOKENS)
    assert "\n" not in str(caught.value)


@needs_sentencepiece
def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    """Llama's and others' have the end of text at 2."""
    import sentencepiece

    lines = iter(["a red fox", "an old lighthouse", "a red lighthouse"] * 9)
    prefix = tmp_path / "other"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(prefix), vocab_size=20, minloglevel=2
    )
    with pytest.raises(
        BundleError, match=r"other\.model: expected the end of text to be piece 1, as T5 has it, found 2"
    ):
        SentencePieceTokenizer(prefix.with_suffix(".model"), MAX_TOKENS)
