"""A text encoder with its tokenizer, as a folder has them: what a bundle is given, and prompts to features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.t5.checkpoint import CONFIG_FILE, load_t5, read_config
from nextscale.models.t5.encoder import T5Encoder
from nextscale.models.t5.presets import BYT5_VOCAB_SIZE, get_preset
from nextscale.models.t5.random_weights import random_t5
from nextscale.runtime._bundle import WORDS_NAME
from nextscale.runtime._errors import NextscaleError, RequestError
from nextscale.runtime._manifest import TokenizerInfo
from nextscale.runtime._tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from nextscale.runtime._words import read_words

PIECES = "spiece.model"


@dataclass(frozen=True)
class TextSource:
    """A text encoder, and how prompts become its token ids.

    Attributes:
        encoder: its weights are of the types that they are stored in.
        tokenizer: as the manifest has it.
        tokenizer_file: of a tokenizer that has one.
        words_file: a list of the words that the model saw, where there is one.
    """

    encoder: T5Encoder
    tokenizer: TokenizerInfo
    tokenizer_file: Path | None = None
    words_file: Path | None = None
    _read: dict[tuple[str, ...], tuple[NDArray[np.float32], ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def features(self, prompts: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """The features of each prompt, float32 [N, Ct], kept for the next bundle that is calibrated with them.

        Raises:
            NextscaleError: a prompt is no text, has no tokens or too many; tells which.
        """
        key = tuple(prompts)
        if key not in self._read:
            self._read[key] = self._features(key)
        return self._read[key]

    @torch.no_grad()
    def _features(self, prompts: tuple[str, ...]) -> tuple[NDArray[np.float32], ...]:
        tokenizer, found = self.opened_tokenizer(), []
        for number, prompt in enumerate(prompts, 1):
            try:
                token_ids = tokenizer.encode(prompt)
            except RequestError as error:
                raise NextscaleError(f"prompt {number} of calibration: {error}") from None
            found.append(self.encoder(torch.from_numpy(token_ids)[None])[0].numpy())
        return tuple(found)

    def opened_tokenizer(self) -> Tokenizer:
        """What makes token ids of prompts."""
        if self.tokenizer_file is None:
            return ByteTokenizer(self.tokenizer.max_tokens)
        return SentencePieceTokenizer(self.tokenizer_file, self.tokenizer.max_tokens)


def load_text_source(folder: Path, channels: int, max_tokens: int) -> TextSource:
    """The encoder of a folder as Hugging Face lays it out, with spiece.model; ByT5's need none. It may have words.txt.

    Args:
        folder: of the encoder.
        channels: what the transformer reads; checked before the weights are read.
        max_tokens: of a prompt.
    Raises:
        CheckpointError: see `load_t5`; features of another width, or no tokenizer.
        NextscaleError: words.txt is no text.
    """
    config = read_config(folder / CONFIG_FILE)
    if config.embed_dim != channels:
        raise CheckpointError(
            f"{folder} makes features of {config.embed_dim} channels, the transformer reads {channels}; give the text "
            "encoder that it learned with"
        )
    words = folder / WORDS_NAME if (folder / WORDS_NAME).exists() else None
    if words is not None:
        read_words(words)
    file = folder / PIECES
    if file.exists():
        pieces = SentencePieceTokenizer(file, max_tokens).pieces
        if pieces > config.vocab_size:
            raise CheckpointError(
                f"{file} has {pieces} pieces, the encoder {config.vocab_size} embeddings; copy it there from where the "
                "encoder was published"
            )
        return TextSource(load_t5(folder), TokenizerInfo("sentencepiece", max_tokens, PIECES), file, words)
    if config.vocab_size != BYT5_VOCAB_SIZE:
        raise CheckpointError(f"{folder} has no {PIECES}; copy it there from where the encoder was published")
    return TextSource(load_t5(folder), TokenizerInfo("bytes", max_tokens), None, words)


def random_text_source(preset: str, channels: int, max_tokens: int, seed: int) -> TextSource:
    """A preset with random weights, which reads bytes, whatever the preset reads: as fast, and means nothing.

    Raises:
        NextscaleError: no such preset, or its features are of another width than the transformer reads.
    """
    found = get_preset(preset).embed_dim
    if found != channels:
        raise NextscaleError(f"{preset} makes features of {found} channels, the transformer reads {channels}")
    return TextSource(random_t5(preset, seed), TokenizerInfo("bytes", max_tokens))
