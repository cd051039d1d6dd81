"""The Python runtime against the suite, and the suite against mistakes in its making."""

from __future__ import annotations

import json
import os
import threading
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance.damaged_manifests import damaged_manifests
from conformance.edit_cases import box, edit_arguments, edit_results, pictures, rows
from conformance.make_suite import (
    CASES,
    DAMAGED,
    DAMAGED_FAKES,
    FAKES,
    LOADED,
    arguments,
    by_threads,
    make_suite,
    results,
)
from fake_bundle import read_manifest

from nextscale import runtime
from nextscale.runtime import Bundle, Generator, NextscaleError, RequestSettings, SessionOptions, StageResult
from nextscale.runtime._cpus import default_threads, logical_cpus
from nextscale.runtime._manifest_reader import parse_manifest
from nextscale.runtime._operators import Choice
from nextscale.runtime._uniforms import philox4x32, uniforms

Case = dict[str, Any]
SMOOTH = ("fake-fused", "tiny-fp32", "tiny-int8")
CASE_GROUPS: dict[str, list[Case]] = json.loads(CASES.read_text())


def ids(case: Case) -> str:
    return str(case.get("name") or case.get("text") or case)


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_suite(tmp_path_factory.mktemp("conformance") / "suite").parent


@pytest.fixture(scope="session")
def suite_of_operators(tmp_path_factory: pytest.TempPathFactory, ops_library: Path) -> Path:
    """A suite that also has the cases that need the library of operators."""
    folder = tmp_path_factory.mktemp("operators") / "suite"
    return make_suite(folder, tiny=False, damaged=1, ops_library=ops_library).parent


@pytest.fixture(scope="session")
def suite(suite_folder: Path) -> dict[str, Any]:
    return json.loads((suite_folder / "suite.json").read_text())


@pytest.fixture
def fake(suite_folder: Path) -> Path:
    return suite_folder / "bundles" / "fake"


@contextmanager
def refuses(case: Case) -> Iterator[None]:
    """A block in which the case's error must be raised, by exactly its type."""
    with pytest.raises(getattr(runtime, case["error"])) as caught:
        yield
    message = str(caught.value)
    assert caught.type.__name__ == case["error"]
    assert "\n" not in message
    assert all(text in message for text in case["contains"]), message


def find(suite: dict[str, Any], group: str, name: str) -> Case:
    [case] = [case for case in suite[group] if case["name"] == name]
    return case


def test_defaults(suite: dict[str, Any]) -> None:
    """None of a request's settings is said, so that each has the bundle's default."""
    defaults = arguments(suite["defaults"])
    assert defaults.keys() - {"class_labels", "batch_size"} == typing.get_type_hints(RequestSettings).keys()
    assert {name for name, value in defaults.items() if value} == set()


@pytest.mark.parametrize("case", CASE_GROUPS["philox"], ids=["zeros", "ones", "pi"])
def test_philox(case: Case) -> None:
    counter, words = (np.array([int(word, 16) for word in case[key]], np.uint32) for key in ("counter", "words"))
    low, high = (int(word, 16) for word in case["key"])
    assert philox4x32(counter, (low, high)).tolist() == words.tolist()


@pytest.mark.parametrize("case", CASE_GROUPS["uniforms"], ids=lambda case: f"{case['seed']}, {case['use']}")
def test_uniforms(case: Case) -> None:
    [numbers] = uniforms(int(case["seed"]), [int(case["image"])], len(case["values"]), case["use"])
    assert (numbers * 2.0**24).tolist() == case["values"]


@pytest.mark.parametrize("streaming", [False, True], ids=["generate", "streaming"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bundle", ["fake", "fake-v1", "fake-text", "fake-fused", "tiny-fp32", "tiny-int8"])
def test_requests(suite_folder: Path, suite: dict[str, Any], bundle: str, threads: int, streaming: bool) -> None:
    generator = Generator(suite_folder / "bundles" / bundle, SessionOptions(threads=threads, ops="stock"))
    requests = [request for request in suite["requests"] if request["bundle"] == f"bundles/{bundle}"]
    assert len(requests) == len(CASE_GROUPS["text_requests" if bundle == "fake-text" else "requests"]) + (
        len(CASE_GROUPS["smooth_requests"]) if bundle in SMOOTH else 0
    )
    for request in requests:
        assert request["threads"] == [1, 2]
        expected = request["expected"]
        kept = expected if streaming else {key: expected[key] for key in ("token_maps", "images_sha256")}
        assert results(generator, request, streaming) == kept, request["name"]


def test_the_requests_tell_the_parameters_apart(suite: dict[str, Any]) -> None:
    """Each parameter must matter in some request, or a runtime that ignores it would pass."""
    for bundle in ("fake", "fake-text"):
        requests = [request for request in suite["requests"] if request["bundle"] == f"bundles/{bundle}"]
        tokens = {json.dumps(request["expected"]["token_maps"]) for request in requests}
        assert len(tokens) == len(requests)


def test_both_schemas_give_the_same(suite: dict[str, Any]) -> None:
    new, old = (
        [request["expected"] for request in suite["requests"] if request["bundle"] == f"bundles/{bundle}"]
        for bundle in ("fake", "fake-v1")
    )
    assert new == old


def test_image_i_of_the_seed_is_the_same_in_any_request(suite: dict[str, Any]) -> None:
    requests = [request for request in suite["requests"] if request["bundle"] == "bundles/fake"]
    expected = {request["name"]: request["expected"] for request in requests}
    assert expected["three at a time"]["token_maps"][2] == expected["one at a time"]["token_maps"][0]


@pytest.mark.parametrize("case", CASE_GROUPS["request_errors"], ids=ids)
@pytest.mark.parametrize("streaming", [False, True], ids=["generate", "streaming"])
def test_request_errors(suite_folder: Path, suite: dict[str, Any], case: Case, streaming: bool) -> None:
    request = find(suite, "request_errors", case["name"])
    with refuses(case):
        results(Generator(suite_folder / request["bundle"]), request, streaming)


@pytest.mark.parametrize("case", CASE_GROUPS["cancellations"], ids=ids)
def test_cancellations(suite: dict[str, Any], fake: Path, case: Case) -> None:
    request = find(suite, "cancellations", case["name"])
    calls: list[int] = []
    flag = threading.Event()
    if case["callbacks"] == 0:
        flag.set()

    def on_stage(stage: StageResult) -> bool:
        calls.append(stage.stage)
        return len(calls) != case["callbacks"]

    with refuses(case):
        Generator(fake).generate(**arguments(request), on_stage=on_stage, cancel=flag)
    assert len(calls) == case["callbacks"]


@pytest.mark.parametrize("case", CASE_GROUPS["class_names"], ids=ids)
def test_class_names(fake: Path, case: Case) -> None:
    bundle = Bundle.open(fake)
    if "label" in case:
        assert bundle.class_label(case["text"]) == case["label"]
    else:
        with refuses(case):
            bundle.class_label(case["text"])


@pytest.mark.parametrize("case", CASE_GROUPS["threads_errors"], ids=ids)
def test_threads_errors(case: Case) -> None:
    with refuses(case):
        SessionOptions(threads=case["threads"])


@pytest.mark.parametrize("case", CASE_GROUPS["default_threads"], ids=ids)
def test_default_threads(suite_folder: Path, suite: dict[str, Any], case: Case) -> None:
    root = suite_folder / find(suite, "default_threads", case["name"])["root"]
    assert default_threads(root) == case["threads"]
    assert logical_cpus(root) == case.get("cpus", os.cpu_count())


@pytest.mark.parametrize("case", CASE_GROUPS["broken_bundles"], ids=ids)
def test_broken_bundles(suite_folder: Path, suite: dict[str, Any], case: Case) -> None:
    folder = suite_folder / find(suite, "broken_bundles", case["name"])["bundle"]
    refused = {**case, "error": "BundleError"}
    if case["step"] == "open":
        with refuses(refused):
            Bundle.open(folder)
        return
    bundle = Bundle.open(folder)
    if case["step"] == "verify_hashes":
        with refuses(refused):
            bundle.verify_hashes()
        return
    bundle.verify_hashes()
    with refuses(refused):
        Generator(bundle).load(*case.get("graphs", LOADED))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bundle", ["fake-fused", "tiny-fp32", "tiny-int8"])
def test_encodes(suite_folder: Path, suite: dict[str, Any], bundle: str, threads: int) -> None:
    generator = Generator(suite_folder / "bundles" / bundle, SessionOptions(threads=threads, ops="stock"))
    cases = [case for case in suite["encodes"] if case["bundle"] == f"bundles/{bundle}"]
    assert len(cases) == len(CASE_GROUPS["encodes"])
    for case in cases:
        found = generator.encode(pictures(int(case["seed"]), case["count"], case["size"]))
        assert found.tolist() == case["token_maps"], case["name"]


@pytest.mark.parametrize("case", CASE_GROUPS["encode_errors"], ids=ids)
def test_encode_errors(suite_folder: Path, suite: dict[str, Any], case: Case) -> None:
    found = find(suite, "encode_errors", case["name"])
    with refuses(case):
        Generator(suite_folder / found["bundle"]).encode(pictures(0, found["count"], found["size"]))


@pytest.mark.parametrize("streaming", [False, True], ids=["edit", "streaming"])
@pytest.mark.parametrize("bundle", ["fake-fused", "tiny-fp32", "tiny-int8"])
def test_edits(suite_folder: Path, suite: dict[str, Any], bundle: str, streaming: bool) -> None:
    generator = Generator(suite_folder / "bundles" / bundle, SessionOptions(threads=2, ops="stock"))
    cases = [case for case in suite["edits"] if case["bundle"] == f"bundles/{bundle}"]
    assert len(cases) == len(CASE_GROUPS["edits"]) + len(CASE_GROUPS["smooth_edits"])
    for case in cases:
        found = edit_results(generator, case, arguments(case), streaming)
        assert found == {key: case["expected"][key] for key in found}, case["name"]


def test_the_edits_tell_the_parameters_apart(suite: dict[str, Any]) -> None:
    edits = [case["expected"] for case in suite["edits"] if case["bundle"] == "bundles/fake-fused"]
    assert len({json.dumps(edit["images_sha256"]) for edit in edits}) == len(edits)


@pytest.mark.parametrize("case", CASE_GROUPS["edit_errors"], ids=ids)
def test_edit_errors(suite_folder: Path, suite: dict[str, Any], case: Case) -> None:
    found = find(suite, "edit_errors", case["name"])
    flag = threading.Event()
    if found["cancelled"]:
        flag.set()
    with refuses(case):
        generator = Generator(suite_folder / found["bundle"])
        generator.edit(**edit_arguments(found), **arguments(found), cancel=flag if found["cancelled"] else None)


@pytest.mark.parametrize("case", CASE_GROUPS["boxes"], ids=ids)
def test_boxes(suite_folder: Path, suite: dict[str, Any], case: Case) -> None:
    found = find(suite, "boxes", case["name"])
    model, ends = Bundle.open(suite_folder / found["bundle"]).model, [float(end) for end in case["ends"]]
    if "error" in case:
        with refuses(case):
            box(ends, found["outside"], model)
    else:
        assert rows(box(ends, found["outside"], model)) == found["mask"]


def test_masks_keep_some_tokens_and_leave_some(suite: dict[str, Any]) -> None:
    """Their arithmetic has tests of its own; here are the cases for other languages."""
    kept = [case["kept"] for case in suite["kept_tokens"] if "kept" in case]
    assert sum("0" in tokens and "1" in tokens[3:] for tokens in kept) > len(kept) / 2
    assert len({str(case["images_sha256"]) for case in suite["blends"]}) == len(suite["blends"])


@pytest.mark.parametrize("threads", [1, 2])
def test_requests_of_fused_graphs(suite_of_operators: Path, ops_library: Path, threads: int) -> None:
    document = json.loads((suite_of_operators / "suite.json").read_text())
    requests = [request for request in document["requests"] if request["bundle"] == "bundles/fake-fused"]
    by_ops = {ops: [item["expected"] for item in requests if item["ops"] == ops] for ops in ("stock", "fused")}
    tokens, images = (
        [[item[key] for item in by_ops[ops]] for ops in ("stock", "fused")] for key in ("token_maps", "images_sha256")
    )
    assert tokens[0] == tokens[1]
    assert images[0] != images[1]  # or nothing would tell who runs them
    encoded = {
        ops: [case["token_maps"] for case in document["encodes"] if case["ops"] == ops] for ops in ("stock", "fused")
    }
    assert encoded["stock"] != encoded["fused"]
    options = SessionOptions(threads=threads, ops="fused", ops_library=str(ops_library))
    generator = Generator(suite_of_operators / "bundles/fake-fused", options)
    for request in [item for item in requests if item["ops"] == "fused"]:
        assert results(generator, request, streaming=True) == request["expected"], request["name"]


@pytest.mark.parametrize("case", CASE_GROUPS["variants"], ids=ids)
def test_variants(suite_of_operators: Path, case: Case) -> None:
    document = json.loads((suite_of_operators / "suite.json").read_text())
    case = find(document, "variants", case["name"])
    library = str(suite_of_operators / case["ops_library"])

    def choice() -> Choice:
        return Generator(suite_of_operators / case["bundle"], SessionOptions(ops=case["ops"], ops_library=library)).ops

    if "error" in case:
        with refuses(case):
            choice()
    else:
        assert choice().variant == case["variant"]
        assert case["reason"] in choice().reason


def test_damaged_manifests(suite_folder: Path, suite: dict[str, Any]) -> None:
    cases = suite["damaged_manifests"]
    assert len(cases) == DAMAGED * len(DAMAGED_FAKES)
    for first in range(0, len(cases), DAMAGED):
        accepted = sum(case["error"] is None for case in cases[first : first + DAMAGED])
        assert 0 < accepted < DAMAGED // 2
    for case in cases:
        text = (suite_folder / case["file"]).read_bytes()
        if case["error"] is None:
            parse_manifest(text)
        else:
            with refuses({**case, "contains": []}):
                parse_manifest(text)


def test_a_case_stands_twice_where_threads_show() -> None:
    assert list(by_threads({"name": "a"}, "expected", ["x"])) == [{"name": "a", "threads": [1, 2], "expected": "x"}]
    assert list(by_threads({"name": "a"}, "expected", ["x", "y"])) == [
        {"name": "a", "threads": [1], "expected": "x"},
        {"name": "a", "threads": [2], "expected": "y"},
    ]


def test_damage_comes_from_the_seed(fake: Path) -> None:
    manifest = read_manifest(fake)
    first = list(damaged_manifests(manifest, 20, seed=1))
    assert first == list(damaged_manifests(manifest, 20, seed=1))
    assert first != list(damaged_manifests(manifest, 20, seed=2))
    assert len(set(first)) == 20


def test_a_suite_without_the_tiny_model_needs_no_torch(tmp_path: Path) -> None:
    path = make_suite(tmp_path / "suite", tiny=False, damaged=5)
    document = json.loads(path.read_text())
    altered = {"fake-cached/snapshots/0123abcd", "fake-edited"}
    assert {request["bundle"] for request in document["requests"]} == {f"bundles/{name}" for name in {*FAKES, *altered}}
    assert {case["bundle"] for case in document["edits"]} == {"bundles/fake-fused"}
    with pytest.raises(FileExistsError):
        make_suite(tmp_path / "suite", tiny=False, damaged=5)


def test_every_error_type_has_a_case() -> None:
    groups = (
        "request_errors",
        "cancellations",
        "class_names",
        "threads_errors",
        "encode_errors",
        "edit_errors",
        "boxes",
    )
    named = {case["error"] for group in groups for case in CASE_GROUPS[group] if "error" in case} | {"BundleError"}
    assert named == {"BundleError", "Cancelled", "ClassLabelError", "NextscaleError", "RequestError"}
    assert all(issubclass(getattr(runtime, name), NextscaleError) for name in named)
