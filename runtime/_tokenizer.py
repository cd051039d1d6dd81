"""Prompts to token ids, as T5's encoders read them (docs/decisions/0014-text-encoder.md).

Every prompt ends in END. What a vocabulary calls special (</s>, <extra_id_0>) is text like any other: a prompt cannot
end itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._errors import BundleError, NextscaleError, RequestError
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_text, shown_value

END = 1
FIRST_BYTE = 3  # after the padding, END and what is unknown
_SHOWN = 40


class Tokenizer(Protocol):
    """What makes token ids of a prompt."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """The ids of a prompt, the last of them END.

        Returns:
            int64 [N], 2 to max_tokens of them.
        Raises:
            RequestError: no text, half a character, no tokens, or more than max_tokens with END.
        """


@dataclass(frozen=True)
class ByteTokenizer:
    """ByT5's: each byte of UTF-8 plus 3.

    Attributes:
        max_tokens: END among them.
    """

    max_tokens: int

    def encode(self, text: str) -> NDArray[np.int64]:
        """As `Tokenizer.encode`."""
        return _ended(text, np.frombuffer(_utf8(text), np.uint8).astype(np.int64) + FIRST_BYTE, self.max_tokens)


class SentencePieceTokenizer:
    """Flan-T5's: pieces of a sentencepiece model, equal to transformers' T5Tokenizer with legacy=True.

    Args:
        path: of the model, spiece.model in T5's releases.
        max_tokens: END among them.
    Raises:
        NextscaleError: sentencepiece is not installed.
        BundleError: the file cannot be read, is no sentencepiece model, or its end of text is not END.
    """

    def __init__(self, path: str | os.PathLike[str], max_tokens: int) -> None:
        self.path, self.max_tokens = Path(path), max_tokens
        self._processor = _load(self.path)

    def __reduce__(self) -> tuple[type[SentencePieceTokenizer], tuple[Path, int]]:
        return SentencePieceTokenizer, (self.path, self.max_tokens)

    @property
    def pieces(self) -> int:
        """How many the model has; ids are below that."""
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> NDArray[np.int64]:
        """As `Tokenizer.encode`; white space alone has no tokens."""
        _utf8(text)
        return _ended(text, self._processor.encode(text), self.max_tokens)


def _load(path: Path) -> Any:
    try:
        sentencepiece = import_module("sentencepiece")
    except ModuleNotFoundError:
        raise NextscaleError(
            "this bundle's prompts need the package sentencepiece: pip install 'nextscale[text]'; or give text_features"
        ) from None
    require_regular(path, BundleError)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        content = path.read_bytes()
        processor.LoadFromSerializedProto(content)
        end = processor.eos_id() if processor.get_piece_size() else None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    except RuntimeError:
        raise BundleError(f"{path} is no sentencepiece model, or a damaged one; copy the bundle again") from None
    if end != END:
        raise BundleError(f"{path}: expected the end of text to be piece {END}, as T5 has it, found {end}")
    return processor


def _utf8(text: str) -> bytes:
    """The prompt's bytes, if it is text."""
    if not isinstance(text, str):
        raise RequestError(f"prompt {shown_value(text)}: expected text")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # As Python decodes bytes of a command line.
        what = (
            f"is byte 0x{code - 0xDC00:02X} of no UTF-8"
            if 0xDC80 <= code < 0xDD00
            else "is half of one (a lone surrogate)"
        )
        raise RequestError(
            f'prompt "{shown_text(text, _SHOWN)}": character {error.start} {what}; expected valid Unicode'
        ) from None


def _ended(text: str, ids: Sequence[int] | NDArray[np.int64], max_tokens: int) -> NDArray[np.int64]:
    """int64 [len(ids) + 1], END last."""
    count = len(ids) + 1
    if count == 1:
        raise RequestError(f'prompt "{shown_text(text, _SHOWN)}" is empty: expected a description in words')
    if count > max_tokens:
        raise RequestError(
            f'prompt "{shown_text(text, _SHOWN)}" has {count} tokens, its end among them; expected at most '
            f"{max_tokens}: shorten it"
        )
    return np.array([*ids, END], np.int64)
