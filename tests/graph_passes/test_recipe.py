from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale.graph_passes.recipe import Recipe, WeightRecipe, load_recipe, recipe_names
from nextscale.runtime._errors import NextscaleError


def write(folder: Path, text: str, name: str = "own.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_that_comes_with_nextscale(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert (recipe.precision == "fp32") == (name == "fp32")
    bits = re.search(r"w(\d)a(\d)$", name)
    if bits:
        assert (recipe.weights.bits, recipe.activations.bits) == (int(bits[1]), int(bits[2]))
        assert recipe.weights.packed == (recipe.weights.bits == 4)
        assert f"W{bits[1]}A{bits[2]}" in recipe.description
    assert (recipe.attention.shift_and_sum != "off") == name.startswith("ours")
    if "litevar" in name:
        assert recipe.layer_choice("blocks.0.ffn.fc2") == "float"


def test_the_papers_settings_all_come_with_nextscale() -> None:
    settings = {"w8a8", "w6a6", "w4a8", "w4a6", "w4a4"}
    methods = {"rtn", "brecq", "litevar", "ours", "ours-litevar"}
    assert {f"{method}-{setting}" for method in methods for setting in settings} < set(recipe_names())


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    text = """
        description = "Mine"
        [weights]
        bits = 3
        range = "mse"
        packed = true
        [attention]
        products = "integer"
        shift_and_sum = "duplicate"
        budget = 1
        [layers]
        "ffn.fc2" = "float"
        "head" = "token"
        [decoder]
        precision = "float"
    """
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.name == "own"
    assert recipe.weights == WeightRecipe(bits=3, range="mse", packed=True)
    assert recipe.attention.budget == 1.0
    assert isinstance(recipe.attention.budget, float)
    assert recipe.activations == Recipe("own").activations
    assert recipe.layers == {"ffn.fc2": "float", "head": "token"}
    assert recipe.decoder.precision == "float"


def test_an_empty_file_is_the_default_of_everything(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "", "plain.toml")) == Recipe("plain")


def test_a_file_may_name_itself(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, 'name = "other"')).name == "other"


def test_a_recipe_is_plain_values_for_a_manifest() -> None:
    recipe = load_recipe("ours-litevar-w4a8")
    plain = json.loads(json.dumps(recipe.as_dict()))
    assert plain == recipe.as_dict()
    assert plain["attention"]["weights"] == "log2"
    assert plain["layers"] == {"ffn.fc2": "float"}
    assert set(plain) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_being_written(name: str, tmp_path: Path) -> None:
    """As TOML, from its plain values."""
    recipe = load_recipe(name)
    lines, tables = [], []
    for key, value in recipe.as_dict().items():
        if isinstance(value, dict):
            tables += [f"[{key}]", *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    assert load_recipe(write(tmp_path, "\n".join([*lines, *tables]))) == recipe


CHOICES: dict[str, tuple[dict[str, Any], str, str]] = {
    "none": ({}, "blocks.0.ffn.fc2", "image"),
    "whole name": ({"head": "float"}, "head", "float"),
    "end of the name": ({"ffn.fc2": "float"}, "blocks.11.ffn.fc2", "float"),
    "last part": ({"fc2": "token"}, "blocks.0.ffn.fc2", "token"),
    "not within a part": ({"c2": "float"}, "blocks.0.ffn.fc2", "image"),
    "not the beginning": ({"blocks.0": "float"}, "blocks.0.ffn.fc2", "image"),
    "longest wins": ({"fc2": "float", "blocks.0.ffn.fc2": "stage", "ffn.fc2": "token"}, "blocks.0.ffn.fc2", "stage"),
    "others have the shorter": ({"fc2": "float", "blocks.0.ffn.fc2": "stage"}, "blocks.1.ffn.fc2", "float"),
}


@pytest.mark.parametrize(("layers", "name", "choice"), CHOICES.values(), ids=CHOICES.keys())
def test_the_longest_ending_decides(layers: dict[str, Any], name: str, choice: str) -> None:
    recipe = Recipe("r", activations=load_recipe("rtn-w8a8").activations, layers=layers)
    assert recipe.layer_choice(name) == choice


REFUSED = {
    "unknown key": ("bits = 8", r'unknown key "bits"; expected one of name, description, precision'),
    "unknown key of a table": ("[weights]\nbit = 8", r'unknown key "weights.bit"; expected one of bits, range'),
    "no table": ("weights = 8", r"weights is 8; expected a table \[weights\]"),
    "layers are no table": ('layers = "float"', r"layers is 'float'; expected a table \[layers\]"),
    "text for a number": ('[weights]\nbits = "8"', r"weights\.bits is '8'; expected int"),
    "a fraction for a number": ("[weights]\nbits = 8.0", r"weights\.bits is 8\.0; expected int"),
    "true for a number": ("[weights]\nbits = true", r"weights\.bits is True; expected int"),
    "a number for true": ("[weights]\npacked = 1", r"weights\.packed is 1; expected bool"),
    "true for a fraction": ("[attention]\nbudget = true", r"attention\.budget is True; expected float"),
    "a number for text": ("description = 3", r"description is 3; expected str"),
    "unknown choice": (
        '[weights]\nrange = "min"',
        r"weights\.range is 'min'; expected one of 'max', 'percentile', 'mse'",
    ),
    "unknown precision": ('precision = "fp16"', r"precision is 'fp16'; expected one of 'int8', 'fp32'"),
    "unknown layer choice": ('[layers]\n"head" = "int4"', r"layers\.\"head\" is 'int4'; expected one of 'float'"),
    "one bit": ("[weights]\nbits = 1", r"weights\.bits is 1; expected 2 to 8"),
    "nine bits": ("[activations]\nbits = 9", r"activations\.bits is 9; expected 2 to 8"),
    "packed bytes": ("[weights]\nbits = 5\npacked = true", r"weights\.packed stores 4 bits, but weights\.bits is 5"),
    "shift-and-sum of floats": ('[attention]\nshift_and_sum = "residual"', r'needs attention\.products = "integer"'),
    "floats, but integers of a text": ('[attention]\ncross = "integer"', r'needs attention\.products = "integer", too'),
    "negative budget": ("[attention]\nbudget = -0.1", r"attention\.budget is -0\.1; expected 0 to 1"),
    "no budget": ("[attention]\nbudget = nan", r"attention\.budget is nan; expected 0 to 1"),
    "large alpha": ("[equalization]\nalpha = 1.5", r"equalization\.alpha is 1\.5; expected 0 to 1"),
    "fewer channels than none": (
        "[decoder]\ntwo_bytes = -1",
        r"decoder\.two_bytes is -1; expected channels, 0 for none",
    ),
    "no images": ("[calibration]\nimages = 0", r"calibration\.images is 0; expected 1 to 1000000"),
    "far too many images": (
        f"[calibration]\nimages = {10**18}",
        r"calibration\.images is 1000000000000000000; expected 1 to 1000000",
    ),
    "full precision of few bits": (
        'precision = "fp32"\n[weights]\nbits = 4\n[layers]\n"head" = "float"',
        r'precision = "fp32" quantizes nothing; remove weights, layers',
    ),
    "full precision by calibration": (
        'precision = "fp32"\n[calibration]\nimages = 8',
        r'precision = "fp32" quantizes nothing; remove calibration',
    ),
    "not TOML": ("[weights", r"not a TOML file: "),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_file_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(NextscaleError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NextscaleError, match=r"binary\.toml: not a TOML file"):
        load_recipe(str(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match=r"absent\.toml: cannot read the recipe: No such file"):
        load_recipe(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("name", ["w4a4", "", "../recipes/fp32", "FP32"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(
        NextscaleError, match=rf'no recipe is named "{re.escape(name)}"; expected a \.toml file or one of '
    ):
        load_recipe(name)


@pytest.mark.parametrize("name", ["", " ", "a\\nb", "\\u001b[31mx"])
def test_a_name_that_is_no_line_of_text_is_refused(tmp_path: Path, name: str) -> None:
    """Before anything is learned: the manifest, at the end, would refuse it."""
    path = tmp_path / "r.toml"
    path.write_text(f'name = "{name}"\n')
    with pytest.raises(NextscaleError, match=r"r\.toml: name is .*; expected printable text"):
        load_recipe(str(path))


def test_a_pipe_is_refused(tmp_path: Path, make_fifo: Callable[[Path], Path]) -> None:
    with pytest.raises(NextscaleError, match="not a regular file"):
        load_recipe(str(make_fifo(tmp_path / "recipe.toml")))
