"""benchmarks/infinity_speed.py: turns are taken once, of processes that are gone after them, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from infinity_bundle import write_infinity_bundle

from nextscale.measure.bundle_contender import bundle_contender
from nextscale.measure.random_request import Subject
from nextscale.runtime import Bundle, SessionOptions

CIRCUMSTANCES = {"commit": "abc", "settings": {"threads": 1, "sides": (1, 2)}}


@pytest.fixture(scope="module")
def infinity_speed(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("infinity_speed")


@pytest.fixture
def turn(infinity_speed: ModuleType) -> Callable[..., Any]:
    def make(name: str, number: int, seconds: float, peak_bytes: int = 10**9) -> Any:
        return infinity_speed.Turn(name, number, seconds, peak_bytes, 2.0, {"openvino": "2026", "numpy": "2"})

    return make


def test_a_turn_is_a_process(infinity_speed: ModuleType, tmp_path: Path) -> None:
    bundle = Bundle.open(write_infinity_bundle(tmp_path / "it"))
    subject = Subject(text_tokens=5)
    contender = bundle_contender("it", bundle, "generate", SessionOptions(threads=1), subject=subject)
    found = infinity_speed.measure(contender, 3, text_tokens=5)
    assert (found.name, found.round) == ("it", 3)
    assert 0 < found.seconds < 60
    assert 20e6 < found.peak_bytes < 1e9
    assert "onnxruntime" in found.versions


def test_turns_that_were_taken_are_not_taken_again(
    infinity_speed: ModuleType, turn: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def measured(contender: Any, done: int, text_tokens: int) -> Any:
        taken.append((contender.name, done, text_tokens))
        return turn(contender.name, done, 1.5 + done)

    monkeypatch.setattr(infinity_speed, "measure", measured)
    contender = infinity_speed.Contender("it", ("false",))
    for _ in range(2):  # the second is a program that goes on
        record = infinity_speed.Record(tmp_path / "turns.jsonl", CIRCUMSTANCES)
        take = record.turn(contender, 64)
        assert [take(done) for done in (0, 1)] == [turn("it", 0, 1.5), turn("it", 1, 2.5)]
    assert taken == [("it", 0, 64), ("it", 1, 64)]
    infinity_speed.Record(tmp_path / "turns.jsonl", CIRCUMSTANCES | {"commit": "def"}).turn(contender, 64)(0)
    assert taken[2:] == [("it", 0, 64)]
    first, *rest = (tmp_path / "turns.jsonl").read_text().splitlines()
    assert json.loads(first)["commit"] == "def"
    assert len(rest) == 1


def test_ratios_are_of_the_same_round(infinity_speed: ModuleType, turn: Callable[..., Any]) -> None:
    seconds = {"fp32": (4.0, 8.0), "int8-stock": (2.0, 4.0), "int8-fused": (1.0, 2.0), "openvino-int8": (1.5, 3.0)}
    turns = {name: [turn(name, i, took) for i, took in enumerate(of_one)] for name, of_one in seconds.items()}
    turns["int8-fused"][1] = turn("int8-fused", 1, 2.0, 3 * 10**9)
    least = {"fp32": 3.0, "int8-stock": 0.75, "int8-fused": 0.75}
    assert infinity_speed.peer_versions(turns) == "openvino-int8 with openvino 2026"
    *_, fused, openvino = infinity_speed.table(turns, least)
    assert fused == "| int8-fused | 1.5 [-4.85, 7.85] | 4 [4, 4] | 1 [1, 1] | 50% | 3.00 | 2.0 |"
    assert openvino == "| openvino-int8 | 2.25 [-7.28, 11.8] | 2.67 [2.67, 2.67] | 1.5 [1.5, 1.5] |  | 1.00 | 2.0 |"


def test_the_roofline_counts_layers_and_decoder(infinity_speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the preset: 3.99 T in linear layers, of which word_embed stays float, and 0.616 T in the decoder."""
    from nextscale.measure.kernel_rates import KernelRates
    from nextscale.models.infinity.layers import linear_shapes, stage_facts
    from nextscale.models.infinity.presets import get_preset
    from nextscale.models.infinity.schedules import make_size

    size = make_size("0.06M", (1, 1))
    facts = stage_facts(linear_shapes(get_preset("infinity-2b").config), [size])

    class Opened:
        class model:
            latent_channels, latent_size = 32, (16, 16)

    monkeypatch.setattr(infinity_speed.Bundle, "open", lambda path: Opened)
    monkeypatch.setattr(infinity_speed, "facts_of_bundle", lambda bundle, size, text_tokens: facts)
    rates = KernelRates(float32=0.5e12, int8=2e12)
    full, integer = (infinity_speed.roofline("infinity-2b", Path(), name, 64, rates) for name in ("fp32", "int8-fused"))
    assert full == pytest.approx((3.987 + 0.6155) / 0.5, rel=1e-3)
    assert integer == pytest.approx((3.987 + 0.6155) / 2, rel=1e-3)
