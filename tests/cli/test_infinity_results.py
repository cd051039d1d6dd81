"""The commands that compare bundles, on bundles of text: `evaluate` and `report`; and those that refuse them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from infinity_bundle import SIZES, write_shifted_bundles
from numpy.typing import NDArray
from refusal import assert_refused
from tiny_model import ONE_THREAD

from nextscale.cli.main import main
from nextscale.evaluate import attention_error
from nextscale.evaluate.attention_error import observed_bytes
from nextscale.runtime import Bundle, Generator

FAST = ("--threads", "1")
BITS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32; shifted, whose log-odds are larger by 0.1; features, the same without a text encoder; and two prompts."""
    folder = tmp_path_factory.mktemp("results")
    write_shifted_bundles(folder, 0.1)
    (folder / "prompts.txt").write_text("a fox\ntwo long dogs\n")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def evaluated(out: Path, *arguments: str) -> dict[str, object]:
    assert main(["evaluate", *arguments, *FAST, "--json", str(out)]) == 0
    found: dict[str, object] = json.loads(out.read_text())
    return found


def logits(bundle: str, prompts: list[str], forced: NDArray[np.int64] | None) -> tuple[list[NDArray[np.float64]], ...]:
    """Of each stage, and its bits."""
    inputs = {"size": 2, "forced_bits": forced}
    stages = list(Generator(bundle, ONE_THREAD).stream(prompts=prompts, seed=5, inputs=inputs, outputs=["logits"]))
    return [stage.outputs["logits"].astype(np.float64) for stage in stages], [stage.tokens for stage in stages]


def test_kl_and_bits_are_those_of_the_log_odds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--prompts", "prompts.txt", "--images", "2", "--seed", "5", "--area", "0.00391M", "--ratio", "1:1")
    found = evaluated(tmp_path / "a.json", "fp32", "shifted", "fp32", *options)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "KL, nats per bit" in captured.out
    assert "bits equal" in captured.out
    assert sorted(found["prompts"]) == ["a fox", "two long dogs"]  # type: ignore[call-overload]
    assert (found["cfg_scale"], found["area"], found["ratio"], found["token_bits"]) == (3.0, "0.00391M", "1:1", BITS)
    prompts: list[str] = found["prompts"]  # type: ignore[assignment]
    expected, tokens = logits("fp32", prompts, None)
    shifted, _ = logits("shifted", prompts, np.concatenate(tokens, axis=1))
    kl, equal = [], []
    for ours, theirs in zip(expected, shifted, strict=True):
        p, q = 1 / (1 + np.exp(-ours)), 1 / (1 + np.exp(-theirs))
        kl.append((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1).mean())
        equal.append(((p > 0.5) == (q > 0.5)).mean())
    weights = [height * width for height, width in SIZES[2].stage_sizes]
    figures = found["bundles"]["shifted"]  # type: ignore[index]
    np.testing.assert_allclose(figures["stage_kl"], kl, rtol=1e-6)
    np.testing.assert_allclose(figures["kl"], np.average(kl, weights=weights), rtol=1e-6)
    np.testing.assert_allclose(figures["stage_top1"], equal, rtol=0, atol=1e-12)
    assert f"{figures['kl'] / BITS:.6f}" in captured.out
    same = found["bundles"]["fp32"]  # type: ignore[index]
    assert (same["kl"], same["top1"]) == (0, 1)


def test_prompts_are_those_of_builds_where_none_are_given(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "a.json", "fp32", "shifted", "--images", "3", "--area", "0.000977M", "--ratio", "1:1")
    assert len(found["prompts"]) == 3  # type: ignore[arg-type]
    assert found["bundles"]["shifted"]["kl"] > 0  # type: ignore[index]


def test_without_a_text_encoder_features_are_made_up(tmp_path: Path) -> None:
    options = ("--images", "3", "--area", "0.000977M", "--ratio", "1:1")
    found = evaluated(tmp_path / "a.json", "features", "shifted", *options)
    assert found["prompts"] is None
    assert found["bundles"]["shifted"]["kl"] > 0  # type: ignore[index]


def test_float_attention_has_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sampled for it, nor is it too large."""
    monkeypatch.setattr(attention_error, "attention_errors", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(attention_error, "MOST_OBSERVED", 0)
    options = ("--images", "2", "--area", "0.000977M", "--ratio", "1:1", "--attention-error", "2")
    found = evaluated(tmp_path / "a.json", "fp32", "shifted", *options)
    assert "none: in float" in capsys.readouterr().out
    assert "attention_error" not in found["bundles"]["shifted"]  # type: ignore[index]


def test_attention_of_large_pictures_is_refused_before_it_begins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the chosen size, which is not the first."""
    monkeypatch.setattr(attention_error, "has_attention_error", lambda bundle: True)
    monkeypatch.setattr("nextscale.cli.evaluate.text_subjects", lambda *_: pytest.fail("begun"))
    model = Bundle.open("fp32").manifest.models[2]
    monkeypatch.setattr(attention_error, "MOST_OBSERVED", observed_bytes(model) - 1)
    options = ("--images", "2", "--area", "0.00391M", "--ratio", "1:1", "--attention-error", "2")
    message = "GB at this size of pictures, of however few images; expected at most 0 GB: choose a smaller --area, or"
    assert_refused(capsys, main(["evaluate", "fp32", "shifted", *options, *FAST]), message)


def test_a_report_draws_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    options = ("--images", "3", "--prompts", "prompts.txt")
    evaluated(tmp_path / "a.json", "fp32", "shifted", *options)
    capsys.readouterr()
    page = tmp_path / "r.html"
    assert main(["report", "fp32", "shifted", str(tmp_path / "a.json"), *options, *FAST, "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    html = page.read_text()
    assert html.count("data:image/png") + html.count("data:image/jpeg") == 4  # two sheets of two bundles
    assert "two long dogs" in html
    assert "Each column is one prompt and seed" in html
    assert "Where tokens are bits" in html
    assert "128 x 96 pixels of texts" in html
    assert main(["report", "features", "--images", "2", *FAST, "--out", str(page)]) == 0
    assert "text 1 · text 2" in page.read_text()


BUNDLE_OF_TEXT = "makes pictures of text, expected a bundle of classes"
REFUSED = {
    "theta": (["theta", "fp32", "--json", "{tmp}/t.json"], f"fp32: {BUNDLE_OF_TEXT}: theta is chosen for VAR alone"),
    "table 3": (
        ["paper", "table-3", "--photographs", ".", "--rows", "fp32", "--store", "{tmp}/store"],
        f"fp32: {BUNDLE_OF_TEXT}: Table 3 is of",
    ),
    "no file": (
        ["evaluate", "fp32", "shifted", "--prompts", "none"],
        "none: no such file; expected prompts, one a line",
    ),
    "a long prompt": (
        ["evaluate", "fp32", "shifted", "--prompts", "{long}"],
        "tokens, its end among them; expected at m",
    ),
    "no text encoder": (
        ["evaluate", "features", "shifted", "--prompts", "prompts.txt"],
        "features has no text encoder to read them; leave them out",
    ),
    "a size": (["evaluate", "fp32", "shifted", "--ratio", "16:9"], "area 0.0117M with ratio 16:9 is not built"),
    "classes of a report": (
        ["report", "fp32", "--class", "3", "--out", "{tmp}/r.html"],
        "tiny makes pictures of prompts",
    ),
    "a size of a report": (
        ["report", "fp32", "--area", "9M", "--out", "{tmp}/r.html"],
        "area 9M with ratio 3:4 is not",
    ),
    "a prompt of a report": (
        ["report", "fp32", "--prompts", "{long}", "--out", "{tmp}/r.html"],
        "tokens, its end among",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_of_text_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("long.txt").write_text(f"a\n{'long ' * 40}\n")
    code = main([item.format(tmp=tmp_path, long="long.txt") for item in arguments])
    assert_refused(capsys, code, message)
    assert not list(tmp_path.iterdir())


CLASSES = {
    "evaluate": (["evaluate", "{bundle}", "{bundle}", "--prompts", "prompts.txt"], "--prompts: these bundles make"),
    "a size": (["evaluate", "{bundle}", "{bundle}", "--ratio", "1:1"], "ratio: this bundle has one size"),
    "report": (
        ["report", "{bundle}", "--prompts", "prompts.txt", "--out", "{tmp}/r.html"],
        "makes pictures of classes",
    ),
    "a size of a report": (
        ["report", "{bundle}", "--ratio", "1:1", "--out", "{tmp}/r.html"],
        "ratio: this bundle has one size",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), CLASSES.values(), ids=CLASSES.keys())
def test_prompts_of_a_bundle_of_classes_are_one_line(
    fake_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert_refused(capsys, main([item.format(bundle=fake_bundle, tmp=tmp_path) for item in arguments]), message)
    assert not list(tmp_path.iterdir())
