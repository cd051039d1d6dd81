"""The Python runtime against the suite's family of text, and that suite against mistakes in its making."""

from __future__ import annotations

import json
import threading
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance.edit_cases import edit_arguments, edit_results, pictures
from conformance.make_suite import LOADED, arguments, results
from conformance.test_conformance import find, ids, refuses
from conformance.text_suite import CASES, FAKES, make_text_suite

from nextscale.runtime import Bundle, Generator, RequestSettings, SessionOptions
from nextscale.runtime._manifest_reader import parse_manifest
from nextscale.runtime._texts import probe_features
from nextscale.runtime._tokenizer import ByteTokenizer

Case = dict[str, Any]
CASE_GROUPS: dict[str, list[Case]] = json.loads(CASES.read_text(encoding="utf-8"))
DAMAGED = 1000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_suite(tmp_path_factory.mktemp("conformance") / "text", DAMAGED).parent


@pytest.fixture(scope="module")
def suite(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "suite.json").read_text())


def test_defaults(suite: dict[str, Any]) -> None:
    """All that a request may say is among them, and none of it is said."""
    assert typing.get_type_hints(RequestSettings).keys() <= suite["defaults"].keys()
    assert {name for name, value in arguments(suite["defaults"]).items() if value} == set()


@pytest.mark.parametrize("case", CASE_GROUPS["tokenizers"], ids=ids)
def test_tokenizers(case: Case) -> None:
    tokenizer = ByteTokenizer(case["max_tokens"])
    if "ids" in case:
        assert tokenizer.encode(case["text"]).tolist() == case["ids"]
    else:
        with refuses(case):
            tokenizer.encode(case["text"])


@pytest.mark.parametrize("case", CASE_GROUPS["probe_features"], ids=ids)
def test_probe_features(suite: dict[str, Any], case: Case) -> None:
    found = find(suite, "probe_features", case["name"])
    texts = [np.array(text) / 2.0**23 for text in found["values"]]
    for text, expected in zip(probe_features(case["lengths"], case["width"]), texts, strict=True):
        np.testing.assert_array_equal(text, expected)


@pytest.mark.parametrize("streaming", [False, True], ids=["generate", "streaming"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bundle", FAKES)
def test_requests(folder: Path, suite: dict[str, Any], bundle: str, threads: int, streaming: bool) -> None:
    if bundle == "fake-pieces":
        pytest.importorskip("sentencepiece")
    generator = Generator(folder / "bundles" / bundle, SessionOptions(threads=threads))
    requests = [request for request in suite["requests"] if request["bundle"] == f"bundles/{bundle}"]
    assert len(requests) == sum(case["bundle"] == bundle for case in CASE_GROUPS["requests"])
    for request in requests:
        expected = request["expected"]
        kept = expected if streaming else {key: expected[key] for key in ("token_maps", "images_sha256")}
        assert results(generator, request, streaming) == kept, request["name"]


def test_the_requests_tell_the_parameters_apart(suite: dict[str, Any]) -> None:
    """Each must matter in some request, or a runtime that ignores it would pass."""
    tokens = [json.dumps([request["bundle"], request["expected"]]) for request in suite["requests"]]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize("case", CASE_GROUPS["request_errors"], ids=ids)
@pytest.mark.parametrize("streaming", [False, True], ids=["generate", "streaming"])
def test_request_errors(folder: Path, suite: dict[str, Any], case: Case, streaming: bool) -> None:
    request = find(suite, "request_errors", case["name"])
    with refuses(case):
        results(Generator(folder / request["bundle"]), request, streaming)


@pytest.mark.parametrize("case", CASE_GROUPS["encodes"], ids=ids)
def test_encodes(folder: Path, suite: dict[str, Any], case: Case) -> None:
    found = find(suite, "encodes", case["name"])
    images = pictures(int(found["seed"]), found["count"], found["size"])
    assert Generator(folder / found["bundle"]).encode(images).tolist() == found["token_maps"]


@pytest.mark.parametrize("case", CASE_GROUPS["encode_errors"], ids=ids)
def test_encode_errors(folder: Path, suite: dict[str, Any], case: Case) -> None:
    found = find(suite, "encode_errors", case["name"])
    with refuses(case):
        Generator(folder / found["bundle"]).encode(pictures(0, found["count"], found["size"]))


@pytest.mark.parametrize("streaming", [False, True], ids=["edit", "streaming"])
@pytest.mark.parametrize("case", CASE_GROUPS["edits"], ids=ids)
def test_edits(folder: Path, suite: dict[str, Any], case: Case, streaming: bool) -> None:
    edit = find(suite, "edits", case["name"])
    found = edit_results(Generator(folder / edit["bundle"]), edit, arguments(edit), streaming)
    assert found == {key: edit["expected"][key] for key in found}


@pytest.mark.parametrize("case", CASE_GROUPS["edit_errors"], ids=ids)
def test_edit_errors(folder: Path, suite: dict[str, Any], case: Case) -> None:
    found = find(suite, "edit_errors", case["name"])
    with refuses(case):
        Generator(folder / found["bundle"]).edit(**edit_arguments(found), **arguments(found), cancel=threading.Event())


@pytest.mark.parametrize("case", CASE_GROUPS["broken_bundles"], ids=ids)
def test_broken_bundles(folder: Path, suite: dict[str, Any], case: Case) -> None:
    broken = folder / find(suite, "broken_bundles", case["name"])["bundle"]
    refused = {**case, "error": "BundleError"}
    if case["step"] == "open":
        with refuses(refused):
            Bundle.open(broken)
        return
    bundle = Bundle.open(broken, verify_hashes=True)
    with refuses(refused):
        Generator(bundle).load(*case.get("graphs", LOADED))


def test_damaged_manifests(folder: Path, suite: dict[str, Any]) -> None:
    cases = suite["damaged_manifests"]
    assert len(cases) == DAMAGED * len(FAKES)
    for first in range(0, len(cases), DAMAGED):
        accepted = sum(case["error"] is None for case in cases[first : first + DAMAGED])
        assert 0 < accepted < DAMAGED // 2
    for case in cases:
        text = (folder / case["file"]).read_bytes()
        if case["error"] is None:
            parse_manifest(text)
        else:
            with refuses({**case, "contains": []}):
                parse_manifest(text)
