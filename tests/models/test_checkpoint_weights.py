from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.checkpoint_weights import Weights, choose_weights, find_weights

ANCHORS = ("a.weight", "b.weight", "c")
PATH = Path("some.pth")


def state(value: float = 0.0, prefix: str = "", **further: Tensor) -> dict[str, Tensor]:
    return {f"{prefix}{name}": torch.full((2,), value) for name in (*ANCHORS, "d.bias", *further)}


def found(content: Any) -> dict[str, list[str]]:
    return {weights.place: sorted(weights.tensors) for weights in find_weights(content, ANCHORS, PATH)}


NAMES = sorted(state())


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (state(), ["."]),
        ({"module": {"model": state(prefix="_orig_mod.net.")}}, ["model.net"]),
        ({"raw": state(), "ema": state()}, ["raw", "ema"]),
        (state() | state(prefix="ema."), [".", "ema"]),
        (state(prefix="g.") | state(prefix="g_ema.module."), ["g", "g_ema"]),
        ({"x": [state()], "y": {"a.weight": torch.zeros(1)}, 3: state()}, ["x.0", "3"]),
        ([state(), {"epoch": 3}], ["0"]),
        ((state(), state()), ["0", "1"]),
        ({"models": [state()]}, ["models.0"]),
        ({"model": list(state().items())}, ["model"]),
        ({"module": state(), "_orig_mod": state()}, ["module", "_orig_mod"]),
        ([[], [1, "a"], None, "abc"], []),
        (None, []),
    ],
    ids=str,
)
def test_weights_are_found_wherever_they_lie(content: Any, places: list[str]) -> None:
    assert found(content) == dict.fromkeys(places, NAMES)


def test_what_lies_beside_weights_of_one_prefix_is_left_out() -> None:
    assert found(state(prefix="net.") | {"step": torch.zeros(1)}) == {"net": NAMES}


def test_more_than_half_of_the_anchors_are_enough() -> None:
    some = {"a.weight": torch.zeros(1), "c": torch.zeros(1)}
    assert found(some) == {".": ["a.weight", "c"]}
    assert found({"c": torch.zeros(1), "other": torch.zeros(1)}) == {}


def test_two_tensors_of_one_name_are_refused() -> None:
    content = state() | {"module.c": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"some\.pth: c and module\.c are both c; keep one of them"):
        find_weights(content, ANCHORS, PATH)


def test_the_most_exact_name_is_chosen() -> None:
    weights = [Weights(place, {}) for place in ("ema", "net.ema", "g_ema", "net.raw")]

    def chosen(name: str | None) -> str:
        return choose_weights(weights, name, PATH, "--weights").place

    assert [chosen(name) for name in ("ema", "net.ema", "g_ema", "g", "raw")] == [
        "ema",
        "net.ema",
        "g_ema",
        "g_ema",
        "net.raw",
    ]
    with pytest.raises(
        CheckpointError, match=r"--weights net is the name of 2 of its sets of weights: ema, net\.ema, g"
    ):
        chosen("net")
    with pytest.raises(CheckpointError, match="--weights em is the name of none of its sets of weights"):
        chosen("em")
    with pytest.raises(
        CheckpointError, match=r"some\.pth holds 4 sets of weights: .*; choose one with --weights, such as --weig"
    ):
        chosen(None)


@pytest.mark.parametrize(
    ("places", "name", "expected"),
    [
        (["model", "EMA"], "ema", "EMA"),
        (["model", "model-ema"], "ema", "model-ema"),
        (["model", "modelEMA"], "ema", "modelEMA"),
        (["model", "EMAModel"], "ema", "EMAModel"),
        (["model", "EMAModel"], "ema-model", "EMAModel"),
        (["model", "Net.Ema"], "net.ema", "Net.Ema"),
        (["model", "ema.online_model", "ema.ema_model"], "ema", "ema.ema_model"),
        (["model", "ema.online_model", "ema.ema_model"], "model", "model"),
        (["model", "ema.0"], "ema", "ema.0"),
        (["ema", "EMA"], "EMA", "EMA"),
        (["model", "a ema_0.9999"], "0.9999", "a ema_0.9999"),
        ([".", "ema"], ".", "."),
    ],
)
def test_a_name_is_found_in_whatever_case(places: list[str], name: str, expected: str) -> None:
    weights = [Weights(place, {}) for place in places]
    assert choose_weights(weights, name, PATH, "--weights").place == expected


@pytest.mark.parametrize("name", ["", " ", "_", "..", "em", "schema", "\x1b[2J"])
def test_a_name_that_no_set_has_is_shown(name: str) -> None:
    weights = [Weights(".", {}), Weights("ema\n", {})]
    with pytest.raises(CheckpointError) as error:
        choose_weights(weights, name, PATH, "--weights")
    shown = {"": "''", " ": "' '", "\x1b[2J": "\\x1b[2J"}.get(name, name)
    assert str(error.value) == (
        f"some.pth: --weights {shown} is the name of none of its sets of weights: . (the top of the file), ema\\n"
    )


def test_the_top_of_the_file_is_chosen_by_a_dot() -> None:
    with pytest.raises(CheckpointError, match=r"\. \(the top of the file\), ema; choose .*, such as --weights \.$"):
        choose_weights([Weights(".", {}), Weights("ema", {})], None, PATH, "--weights")


def test_keys_that_are_the_same_as_text_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"some\.pth: two tensors are called x\.1; keep one of them"):
        found({"x": {1: torch.zeros(1), "1": torch.zeros(1)}})


def nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = state()
    for _ in range(depth):
        content = {"x": content}
    return content


def circular() -> dict[str, Any]:
    content: dict[str, Any] = state()
    content["self"] = content
    return content


def circular_list() -> list[Any]:
    content: list[Any] = [state()]
    content.append(content)
    return content


def doubling_lists() -> list[Any]:
    content: list[Any] = []
    for _ in range(30):
        content = [content, content]
    return content


def doubling() -> dict[str, Any]:
    """2^30 dictionaries to walk through, 30 in memory."""
    content: dict[str, Any] = {}
    for _ in range(30):
        content = {"a": content, "b": content}
    return content


@pytest.mark.parametrize(
    "content",
    [
        nested(33),
        circular(),
        circular_list(),
        doubling(),
        doubling_lists(),
        dict.fromkeys(range(20_001), torch.zeros(1)),
        [torch.zeros(1)] * 20_001,
        dict.fromkeys(range(1_000_001)),
    ],
    ids=["nested", "circular", "circular list", "doubling", "doubling lists", "tensors", "list", "entries"],
)
def test_endless_contents_are_refused(content: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"some\.pth holds more than 20000 tensors, 20000 dictionaries or 1000000"
    ):
        find_weights(content, ANCHORS, PATH)


def test_dictionaries_32_deep_are_read() -> None:
    assert found(nested(32)) == {".".join("x" * 32): NAMES}
