"""`nextscale build` of an Infinity: from checkpoints to pictures by commands alone, and each refusal in one line."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from infinity_bundle import TEXT, VAE
from infinity_checkpoints import save_infinity_checkpoints, save_text_encoder
from PIL import Image
from refusal import assert_refused

from nextscale.cli.main import main
from nextscale.compiler.options import BuildOptions
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.infinity import presets
from nextscale.models.infinity.random_vae import random_bsq_vae
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.simulation.reconstruction_settings import ReconstructionSettings
from nextscale.simulation.rounding import Rounding
from tests.tiny_infinity import CONFIG

TEXTS = ["byt5"]
if importlib.util.find_spec("sentencepiece") is not None:
    TEXTS.append("flan-t5")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("infinity")
    save_infinity_checkpoints(folder)
    return folder


@pytest.fixture
def build(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command in the folder of the checkpoints; the bundle is tmp_path/bundle."""
    monkeypatch.chdir(checkpoints)

    def run(*arguments: str, infinity: str = "infinity.pth", vae: str = "vae.pth") -> int:
        files = ("--infinity", infinity, "--vae", vae)
        return main(["build", *files, "--out", str(tmp_path / "bundle"), "--threads", "1", *arguments])

    return run


@pytest.mark.parametrize("text", TEXTS)
def test_checkpoints_become_pictures(
    build: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    Path(text, "words.txt").write_text("a\nred\n")
    assert build("--text", text, "--pn", "0.06M", "--ratio", "1:1,3:4", "--recipe", "fp32", "--name", "mine") == 0
    bundle, picture, edited = (tmp_path / name for name in ("bundle", "fox.png", "edited.png"))
    manifest = Bundle.open(bundle, verify_hashes=True).manifest
    captured = capsys.readouterr()
    assert captured.out == f"{bundle}: mine, fp32, {manifest.size / 1e6:.1f} MB\n"
    assert captured.err == ""
    assert [size.image_size for size in manifest.sizes] == [(256, 256), (320, 240)]
    assert f"Built from `infinity.pth`, `vae.pth` and `{text}`." in (bundle / "card.md").read_text()
    assert main(["verify", str(bundle), "--threads", "1"]) == 0
    assert main(["inspect", str(bundle)]) == 0
    assert "256 x 256 pixels of prompts" in capsys.readouterr().out
    draw = ["--prompt", "a red fox", "--threads", "1"]
    assert main(["generate", str(bundle), *draw, "--quiet", "--verbose", "--out", str(picture)]) == 0
    assert capsys.readouterr().err == "words that the model never saw, drawn all the same: fox\n"
    assert main(["generate", str(bundle), *draw, "--ratio", "3:4", "--out", str(picture)]) == 0
    assert main(["edit", str(bundle), str(picture), *draw, "--box", "0,0,0.5,0.5", "--out", str(edited)]) == 0
    before, after = (np.asarray(Image.open(path)) for path in (picture, edited))
    assert before.shape == (320, 240, 3)
    np.testing.assert_array_equal(after[:, 128:], before[:, 128:])  # the box reaches to a latent position's end
    assert (after[:160, :120] != before[:160, :120]).any()


def test_random_weights_of_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = presets.Preset("infinity-tiny", replace(CONFIG, max_text=64, num_levels=7), VAE)
    monkeypatch.setitem(presets.PRESETS, "infinity-tiny", tiny)
    out = tmp_path / "bundle"
    arguments = ["--preset", "infinity-tiny", "--random-weights", "--area", "0.06M", "--recipe", "fp32", "--no-encoder"]
    assert main(["build", *arguments, "--out", str(out), "--threads", "1"]) == 0
    manifest = Bundle.open(out).manifest
    assert (manifest.licence, list(manifest.graphs)) == ("none: random numbers", ["generate", "stage", "decoder"])
    assert "`infinity-tiny` with random weights (seed 0)" in (out / "card.md").read_text()


def test_two_releases_of_one_shape_are_told(
    build: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise NextscaleError("enough")

    monkeypatch.setattr("nextscale.models.infinity.pair.TWIN_BITS", CONFIG.token_bits)
    monkeypatch.setattr("nextscale.compiler.build.build_bundle", stop)
    assert build("--area", "0.06M", "--recipe", "fp32") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("vae.pth has the shapes of both infinity_vae_d32.pth and infinity_vae_d32reg.pth")
    assert second == "error: enough"


FILES = {
    "no such area": (["--area", "0.5M"], "--area '0.5M': expected one of 0.06M, 0.25M, 0.60M, 1M"),
    "no such ratio": (["--ratio", "1:1,5:7"], "--ratio '5:7': expected one of 1:1, 4:5"),
    "too many stages": (["--area", "0.25M"], "--area 0.25M: has 10 stages, the model makes at most 8"),
    "no text folder": (["--area", "0.06M", "--text", "none"], "none/config.json does not exist"),
    "text of another width": (["--area", "0.06M", "--text", "wide"], "wide makes features of 24 channels, the transf"),
    "no text to calibrate": (["--area", "0.06M"], "give the text encoder's folder with --text"),
    "no prompts": (["--text", "byt5", "--prompts", "none.txt"], "none.txt: no such file; expected prompts, one a line"),
    "no images of prompts": (
        ["--area", "0.06M", "--text", "byt5", "--calibration", "none"],
        "none: no such folder; expected one made by `nextscale calibrate`",
    ),
    "a prompt that is too long": (
        ["--area", "0.06M", "--text", "byt5", "--prompts", "long.txt"], "prompt 2 of calibration: prompt"
    ),
    "weights to be learned": (["--recipe", "ours-w4a6"], "ours-w4a6: its weights are reconstructed; add --learn"),
    "no rounding": (
        ["--area", "0.06M", "--text", "byt5", "--recipe", "brecq-w4a6", "--rounding", "none.safetensors"],
        "none.safetensors: cannot be read as a rounding file",
    ),
    "rounding of another recipe": (
        ["--area", "0.06M", "--text", "byt5", "--recipe", "brecq-w4a8", "--rounding", "w4a6.safetensors"],
        "recipe brecq-w4a8",
    ),
    "nothing to learn": (["--learn"], "recipe default: rounds weights to nearest, so there is nothing to learn"),
    "no text to learn with": (["--area", "0.06M", "--recipe", "brecq-w4a6", "--learn"], "give the text encoder's fold"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), FILES.values(), ids=FILES.keys())
def test_what_does_not_fit_is_one_line(
    build: Callable[..., int],
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    if not (checkpoints / "wide").exists():
        save_text_encoder(checkpoints / "wide", replace(TEXT, embed_dim=24))
        (checkpoints / "long.txt").write_text(f"a fox\n{'long ' * 20}\n")
        Rounding({}, {}, load_recipe("brecq-w4a6").as_dict(), {}).save(checkpoints / "w4a6.safetensors")
    assert_refused(capsys, build(*arguments), message)
    assert not list(tmp_path.iterdir())


def test_a_vae_of_another_width_is_one_line(
    build: Callable[..., int], checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"vae": random_bsq_vae(replace(VAE, latent_channels=6)).state_dict()}, checkpoints / "narrow.pth")
    assert_refused(capsys, build(vae="narrow.pth"), "narrow.pth has 6 latent channels, the transformer's tokens have 8")


def test_a_missing_shard_is_one_line(
    build: Callable[..., int], checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = {"metadata": {}, "weight_map": {"cfg_uncond": "pytorch_model-00001-of-00002.bin"}}
    (checkpoints / "sharded.bin.index.json").write_text(json.dumps(index))
    code = build(infinity="sharded.bin.index.json")
    assert_refused(capsys, code, "pytorch_model-00001-of-00002.bin")


def test_weights_are_learned_with_what_the_options_say(
    build: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command calls `learn_bundle`, which tests/compiler/test_learn_infinity.py has."""
    calls = []

    def learn_bundle(source: object, out: Path, options: BuildOptions, settings: object, *further: object) -> None:
        calls.append((type(source).__name__, out, options.recipe.name, settings))
        raise NextscaleError("far enough")

    monkeypatch.setattr("nextscale.compiler.learn.learn_bundle", learn_bundle)
    code = build(
        *("--text", "byt5", "--area", "0.06M", "--recipe", "brecq-w4a6", "--learn"),
        *("--iterations", "7", "--batch", "3", "--seed", "5"),
    )
    assert_refused(capsys, code, "far enough")
    settings = ReconstructionSettings(iterations=7, batch_size=3, seed=5)
    assert calls == [("InfinitySource", tmp_path / "bundle", "brecq-w4a6", settings)]


INFINITY = ["--infinity", "a.pth", "--vae", "b.pth"]
RANDOM = ["--preset", "infinity-2b", "--random-weights"]
BAD_USAGE = {
    "no vae": (["--infinity", "a.pth"], "--infinity needs --vae"),
    "a preset of a checkpoint": ([*INFINITY, "--preset", "infinity-2b"], "--infinity does not go with --preset"),
    "a preset alone": (["--preset", "infinity-2b"], "--preset infinity-2b needs --random-weights"),
    "random checkpoint": ([*RANDOM, "--vae", "b.pth"], "--random-weights does not go with --vae"),
    "random positions": ([*RANDOM, "--rope-mode", "1"], "--random-weights does not go with --rope-mode"),
    "demo": (["demo", *INFINITY], "--infinity does not go with demo"),
    "a VAR, too": ([*INFINITY, "--var", "a.pth"], "--infinity does not go with --var"),
    "VAR's shapes": ([*INFINITY, "--patch-nums", "1,2"], "--infinity does not go with --patch-nums"),
    "classes": ([*RANDOM, "--class-names", "a.txt"], "infinity-2b does not go with --class-names"),
    "random weights to learn": (
        [*RANDOM, "--recipe", "ours-w4a6", "--learn"], "weights are reconstructed, which random ones cannot be"
    ),
    "prompts without text": ([*INFINITY, "--prompts", "a.txt"], "a build without --text does not go with --prompts"),
    "no text left out": ([*INFINITY, "--no-text-encoder"], "a build without --text does not go with --no-text-encoder"),
    "prompts of full precision": (
        [*INFINITY, "--text", "t5", "--prompts", "a.txt", "--recipe", "fp32"],
        "recipe fp32: full precision does not go with --prompts",
    ),
    "a VAR's area": (["demo", "--area", "1M"], "demo does not go with --area"),
    "a VAR's text": (["--var", "a", "--vae", "b", "--text", "t5"], "--var does not go with --text"),
    "a VAR preset's ratio": (
        ["--preset", "var-d16", "--random-weights", "--ratio", "3:4"], "var-d16 does not go with --ratio"
    ),
    "a preset of no family": (["--preset", "infinity-2c", "--random-weights"], "did you mean infinity-2b?"),
}  # fmt: skip


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str
) -> None:
    assert_refused(capsys, main(["build", *usage, "--out", str(tmp_path / "bundle")]), message)
    assert not list(tmp_path.iterdir())
