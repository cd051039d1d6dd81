"""RXNMapper's ALBERT, which reads reactions; one head's attention guides which atom of a product was which before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from foreign_tools.feeds import Arrays
from foreign_tools.relative_error import relative_error
from numpy.typing import NDArray

from foreign_subjects.exporting import export
from foreign_subjects.packages import PackagedFile, packages
from foreign_subjects.subject import Subject

_FOLDER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
WEIGHTS, CONFIGURATION, VOCABULARY = (
    PackagedFile("rxnmapper==0.4.3", f"{_FOLDER}/{name}", sha256)
    for name, sha256 in {
        "pytorch_model.bin": "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
        "config.json": "ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f",
        "vocab.txt": "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd",
    }.items()
)
TRANSFORMERS = "transformers==5.23.0"
# Of transformers' layers and heads, the one that RXNMapper maps by.
LAYER, HEAD = 10, 5
LENGTH = 96
ARROW = ">>"
# Atoms in brackets and those of two letters, ring closures of two digits, the arrow, and all else by the character.
_TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|>>|.")


def subject(work: Path) -> Subject:
    """The package's weights in transformers' AlbertModel, exported by torch.onnx, with the guiding attention."""
    files = [file.get(work) for file in (WEIGHTS, CONFIGURATION, VOCABULARY)]
    vocabulary = {token: number for number, token in enumerate(files[2].read_text(encoding="utf-8").splitlines())}
    names = ("calibration", "test")
    reactions = {name: [tokenize(line) for line in _lines(name)] for name in names}
    feeds = {name: [encode(tokens, vocabulary) for tokens in reactions[name]] for name in names}

    def measure(exact: Sequence[Arrays], found: Sequence[Arrays]) -> list[str]:
        expected, made = (_unpadded(of_one, reactions["test"]) for of_one in (exact, found))
        same = [
            guides(one["attention"][0], tokens) == guides(other["attention"][0], tokens)
            for one, other, tokens in zip(expected, made, reactions["test"], strict=True)
        ]
        return [f"{np.concatenate(same).mean():.3f}", f"{relative_error(expected, made):.4f}"]

    return Subject(
        title="RXNMapper's ALBERT, 12 layers that share their weights",
        origin=(
            f"model: {WEIGHTS.path} of {WEIGHTS.package}, sha256 {WEIGHTS.sha256[:12]}; a checkpoint of PyTorch's, "
            f"exported by torch.onnx from AlbertModel of {TRANSFORMERS}, with one more output, the attention of "
            f"head {HEAD} of layer {LAYER}",
            f"reactions: {len(feeds['test'])} to test and {len(feeds['calibration'])} others to calibrate on, written "
            f"by hand (benchmarks/foreign_subjects/reactions_*.txt), padded to {LENGTH} tokens",
            "guides: for each atom of the product, the atom before the arrow that the head attends to most, both ways "
            "added; hidden states and attention without padding",
        ),
        model=export(
            "export_albert",
            packages([TRANSFORMERS], work, alone=False),
            work / "rxnmapper",
            weights=str(files[0]),
            configuration=str(files[1]),
            layer=LAYER,
            head=HEAD,
            length=LENGTH,
        ),
        calibration=feeds["calibration"],
        test=feeds["test"],
        headings=("guides as in float", "relative error"),
        measure=measure,
    )


def tokenize(reaction: str) -> list[str]:
    """The tokens of a reaction in SMILES, between the two that begin and end it."""
    return ["[CLS]", *_TOKEN.findall(reaction), "[SEP]"]


def encode(tokens: Sequence[str], vocabulary: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """int64 [1, LENGTH] of each input.

    Raises:
        KeyError: the model does not know a token.
    """
    ids, mask = np.zeros((2, 1, LENGTH), np.int64)
    ids[0] = vocabulary["[PAD]"]
    ids[0, : len(tokens)] = [vocabulary[token] for token in tokens]
    mask[0, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def guides(attention: NDArray[np.float32], tokens: Sequence[str]) -> NDArray[np.int64]:
    """For each atom of the product, the place of the token before the arrow that it is nearest to.

    Args:
        attention: [T, T] or more, from each token to each.
        tokens: T.
    """
    arrow = tokens.index(ARROW)
    atoms = [i for i, token in enumerate(tokens) if token[0].isalpha() or (token[0] == "[" and 0 < i < len(tokens) - 1)]
    before, after = (np.array([i for i in atoms if (i < arrow) == first]) for first in (True, False))
    both = attention[np.ix_(after, before)] + attention[np.ix_(before, after)].T
    return before[both.argmax(axis=1)]


def _unpadded(outputs: Sequence[Arrays], reactions: Sequence[Sequence[str]]) -> list[Arrays]:
    """What the model gives for the tokens of each reaction."""
    return [
        {
            "hidden": of_one["hidden"][:, : len(tokens)],
            "attention": of_one["attention"][:, : len(tokens), : len(tokens)],
        }
        for of_one, tokens in zip(outputs, reactions, strict=True)
    ]


def _lines(kind: str) -> list[str]:
    return (Path(__file__).parent / f"reactions_{kind}.txt").read_text(encoding="utf-8").splitlines()
