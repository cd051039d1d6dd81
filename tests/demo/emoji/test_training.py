"""The training programs for a few steps, on very small models and a few sprites."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale.demo.emoji import loop, train_judge, train_text, train_tokenizer, train_transformer
from nextscale.demo.emoji.configuration import TINY
from nextscale.demo.emoji.weights import VAE, save_module, saved_step
from nextscale.demo.training import load_checkpoint
from nextscale.models.infinity.bsq_vae import BSQVAE

pytestmark = pytest.mark.usefixtures("global_state")

PROGRAMS = {
    "tokenizer": train_tokenizer.main,
    "text": train_text.main,
    "transformer": train_transformer.main,
    "judge": train_judge.main,
}
Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(data: Path, tmp_path: Path) -> Train:
    """Run a program in a folder of its own and return its checkpoint."""

    def run(name: str, folder: str, steps: int, *more: object) -> dict[str, Any]:
        out = tmp_path / folder
        if not out.exists():
            out.mkdir()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                save_module(BSQVAE(TINY.models.vae), out / VAE, step=0)
        options = ["--data", data, "--out", out, "--steps", steps, "--batch", 1, "--loaders", 0, *more]
        PROGRAMS[name].main([*map(str, options), "--tiny", "--no-compile"], standalone_mode=False)
        return load_checkpoint(out / f"{name}.ckpt", torch.device("cpu"))

    return run


class CutError(Exception):
    """What a machine that is taken away does."""


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, whatever is nested."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_that_was_cut_ends_as_one_that_was_not(
    name: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call is cut after two of four steps, as a machine that is taken away cuts it: nothing is saved then."""
    whole = train(name, "whole", 4, "--validate-every", 2)
    save, saved = loop.save_checkpoint, list[Path]()

    def save_once(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        saved.append(path)
        raise CutError

    monkeypatch.setattr(loop, "save_checkpoint", save_once)
    with pytest.raises(CutError):
        train(name, "cut", 4, "--validate-every", 2)
    monkeypatch.undo()
    assert load_checkpoint(saved[0], torch.device("cpu"))["step"] == 2
    assert_same(train(name, "cut", 4, "--validate-every", 2), whole)
    assert whole["step"] == 4
    validations = [r for r in records(tmp_path / "whole" / f"{name}.jsonl") if "lr" not in r]
    assert [r["step"] for r in validations] == [2, 4]


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_learns_and_goes_on_from_weights_alone(name: str, train: Train, tmp_path: Path) -> None:
    first = train(name, "first", 2)
    assert first["average"]["steps"] == 2
    other = train(name, "other", 4, "--init", tmp_path / "first")
    assert (other["step"], other["begin"], other["average"]["steps"]) == (4, 2, 2)
    written = [path for path in (tmp_path / "other").rglob("*.safetensors") if path.name != VAE or name == "tokenizer"]
    assert {saved_step(path) for path in written} == {4}


def test_a_call_ends_after_its_minutes_and_is_saved(train: Train) -> None:
    train("text", "out", 3)
    assert train("text", "out", 100, "--minutes", 0)["step"] == 3
    assert train("text", "out", 4)["step"] == 4


def test_the_judge_learns_from_further_styles(train: Train, data: Path, tmp_path: Path) -> None:
    train("judge", "without", 2)
    train("judge", "with", 2, "--more", data)
    of = [records(tmp_path / folder / "judge.jsonl")[-1] for folder in ("without", "with")]
    assert of[0].keys() == of[1].keys()
    assert load_checkpoint(tmp_path / "with" / "judge.ckpt", torch.device("cpu"))["step"] == 2
