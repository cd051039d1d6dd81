"""The family of text: what bundles of several sizes, prompts, masks and bits do, for runtimes that know them.

A suite of its own with the form of the other one, so that runtimes that do not know them yet pass that; README.md tells
what its cases have further.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from conformance.edit_cases import edit_case, edit_results, pictures
from conformance.make_suite import (
    PARAMETERS,
    arguments,
    break_bundle,
    by_threads,
    damage_manifests,
    request_of,
    requests_of,
)
from fake_sizes_bundle import PIECES, SMALL_MODEL, C, write_fake_sizes_bundle
from fake_text_bundle import write_fake_text_bundle
from numpy.typing import NDArray

from nextscale.measure.provenance import versions
from nextscale.runtime import Bundle, Generator, SessionOptions
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._texts import probe_features

CASES = Path(__file__).with_name("text_cases.json")
# Prompts and their ids, as transformers makes them.
GOLDENS = SMALL_MODEL.with_name("text_tokens.json")
TEXT_PARAMETERS = {"prompts": None, "negative": None, "area": None, "ratio": None, "tau": None}
# Of one size; of three sizes with a text encoder; the same without one; the same with pieces for bytes.
FAKES = {
    "fake-text": write_fake_text_bundle,
    "fake-sizes": write_fake_sizes_bundle,
    "fake-features": partial(write_fake_sizes_bundle, text_encoder=False),
    "fake-pieces": partial(write_fake_sizes_bundle, pieces=True),
}
ONE_THREAD = SessionOptions(threads=1, ops="stock")


@dataclass(frozen=True)
class GoldenPieces:
    """The tokenizer of sentencepiece for the prompts of GOLDENS: suites are also made where that is not installed."""

    def encode(self, text: str) -> NDArray[np.int64]:
        [ids] = [case["sentencepiece"] for case in goldens() if case["prompt"] == text]
        return np.array(ids, np.int64)


def goldens() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(GOLDENS.read_text(encoding="utf-8"))
    return found


def make_text_suite(out: Path, damaged: int) -> Path:
    """Write the suite into the new folder `out`.

    Args:
        out: the folder; must not exist.
        damaged: how many damaged manifests of each fake bundle.
    Returns:
        the path of suite.json.
    """
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    out.mkdir(parents=True)
    fakes = {name: write(out / "bundles" / name) for name, write in FAKES.items()}
    suite = {
        "made_with": {**versions(), "cpu": describe_machine().cpu},
        "defaults": {"class_labels": [], **PARAMETERS, **TEXT_PARAMETERS},
        "tokenizers": [*cases["tokenizers"], *_tokenizers()],
        "probe_features": [{**case, "values": _probe(case)} for case in cases["probe_features"]],
        "requests": [
            {"bundle": f"bundles/{name}", "ops": "stock", "ops_library": None, **request}
            for name, folder in fakes.items()
            for request in requests_of([golden_generator(folder)], list(_of_bundle(cases["requests"], name)))
        ],
        "request_errors": [
            {"bundle": "bundles/fake-sizes", **PARAMETERS, **TEXT_PARAMETERS, "class_labels": [], **_inputs(case)}
            for case in cases["request_errors"]
        ],
        "encodes": list(_encodes(fakes["fake-sizes"], cases["encodes"])),
        "encode_errors": [
            {"bundle": "bundles/fake-sizes", "ops": "stock", "ops_library": None, "seed": "0", "count": 1, **case}
            for case in cases["encode_errors"]
        ],
        "edits": list(_edits(fakes["fake-sizes"], cases["edits"])),
        "edit_errors": [_edit(Bundle.open(fakes["fake-sizes"]), case) for case in cases["edit_errors"]],
        "broken_bundles": [
            break_bundle(out, number, fakes[case.get("of", "fake-sizes")], case)
            for number, case in enumerate(cases["broken_bundles"])
        ],
        "damaged_manifests": damage_manifests(out, list(fakes.values()), damaged),
    }
    path = out / "suite.json"
    path.write_text(json.dumps(suite, indent=1) + "\n")
    return path


def golden_generator(folder: Path) -> Generator:
    """Of a fake bundle, with GoldenPieces where its tokenizer is of sentencepiece."""
    bundle = Bundle.open(folder)
    if bundle.manifest.tokenizer is not None and bundle.manifest.tokenizer.kind == "sentencepiece":
        vars(bundle)["tokenizer"] = GoldenPieces()
    return Generator(bundle, ONE_THREAD)


def _tokenizers() -> Iterator[dict[str, Any]]:
    """Each of the goldens by both kinds."""
    for case in goldens():
        shared = {"name": ascii(case["prompt"]), "max_tokens": 512, "text": case["prompt"]}
        yield {**shared, "kind": "bytes", "ids": case["bytes"]}
        file = f"bundles/fake-pieces/{PIECES}"
        yield {**shared, "kind": "sentencepiece", "file": file, "ids": case["sentencepiece"]}


def _probe(case: dict[str, Any]) -> list[list[list[int]]]:
    """Times 2^23, which makes whole numbers of them."""
    return [
        (text.astype(np.float64) * 2**23).astype(int).tolist()
        for text in probe_features(case["lengths"], case["width"])
    ]


def _of_bundle(cases: list[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """The cases of a bundle, without its name."""
    for case in cases:
        if case["bundle"] == name:
            yield _inputs({**TEXT_PARAMETERS, **{key: value for key, value in case.items() if key != "bundle"}})


def _inputs(case: dict[str, Any]) -> dict[str, Any]:
    """With tensors in place of the lengths of texts, by the names of the inputs."""
    lengths = case.get("lengths", {})
    inputs = {
        name: {"dtype": "float32", "texts": [_features(row, length) for row, length in enumerate(texts)]}
        for name, texts in lengths.items()
    }
    others = {key: value for key, value in case.items() if key != "lengths"}
    return {**others, "inputs": {**case.get("inputs", {}), **inputs}}


def _features(row: int, length: int) -> list[list[float]]:
    """Of a text: any numbers of float32."""
    tokens, columns = np.ogrid[:length, :C]
    numbers: list[list[float]] = (
        np.sin(3.0 * row + 5.0 * tokens + columns).astype(np.float32).astype(np.float64).tolist()
    )
    return numbers


def _encodes(folder: Path, cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    generator = Generator(folder, ONE_THREAD)
    for case in cases:
        found = generator.encode(pictures(int(case["seed"]), case["count"], case["size"]))
        graphs = {"bundle": "bundles/fake-sizes", "ops": "stock", "ops_library": None}
        yield from by_threads({**graphs, **case}, "token_maps", [found.tolist()])


def _edits(folder: Path, cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    generator = Generator(folder, ONE_THREAD)
    for case in cases:
        edit = _edit(generator.bundle, case)
        yield from by_threads(edit, "expected", [edit_results(generator, edit, arguments(edit), streaming=True)])


def _edit(bundle: Bundle, case: dict[str, Any]) -> dict[str, Any]:
    """An edit of a picture of the size of index `at`."""
    at = case["at"]
    request = request_of({**TEXT_PARAMETERS, **_inputs({key: case[key] for key in case if key != "at"})}, bundle, at)
    edit = edit_case(request, bundle.manifest.models[at])
    return {"bundle": "bundles/fake-sizes", "ops": "stock", "ops_library": None, "cancelled": False, **edit}
