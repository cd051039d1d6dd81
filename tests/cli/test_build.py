from __future__ import annotations

import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from refusal import assert_refused
from tiny_model import CLASS_NAMES, L, rounded_down, tiny_models, tiny_preset
from torch import Tensor

from nextscale.calib_data.token_maps import TokenMaps
from nextscale.cli.main import main
from nextscale.graph_passes.recipe import load_recipe
from nextscale.models.var import presets, random_weights
from nextscale.models.var.sources import VARSource
from nextscale.runtime import Bundle
from nextscale.runtime._errors import NextscaleError

RUN = "import sys; sys.path[:] = {path!r}; from nextscale.cli.program import run; sys.exit(run())"
CALIBRATING = ".nextscale-*/calibration-*/full_precision/manifest.json"
FAST = ("--calibration-images", "2", "--threads", "1")
SHAPE = ("--patch-nums", "1,2,3,4")
StateDict = dict[str, Tensor]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """var and vae, each as .safetensors of float16, as .pth, and damaged in several ways."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in zip(("var", "vae"), tiny_models(), strict=True):
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        torch.save(state, folder / f"{name}.pth")
        halved = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
        safetensors.torch.save_file(halved, folder / f"{name}.safetensors")
    content = (folder / "var.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(content[: len(content) // 2])
    content = (folder / "var.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "foreign.pth").write_bytes(b"\x89PNG\r\n" + bytes(1000))
    (folder / "empty.pth").write_bytes(b"")
    torch.save({"conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(3)}, folder / "resnet.pth")
    state = dict(tiny_models()[0].state_dict())
    state["head.weight"] = state["head.weight"].clone()
    state["head.weight"][3, 4] = torch.nan
    torch.save(state, folder / "nan.pth")
    torch.save(state | {"head.weight": torch.full((128, 64), 1e300, dtype=torch.float64)}, folder / "overflow.pth")
    torch.save(state | {"head.weight": torch.full((128, 64), 3e38)}, folder / "overflows.pth")
    torch.save(state | {"\x1b[2J": torch.zeros(1)}, folder / "control.pth")
    trained = {
        "model": state,
        "ema": {f"module.{name}": tensor for name, tensor in tiny_models()[0].state_dict().items()},
    }
    torch.save(trained, folder / "trained.pth")
    learned = [tensor for name, tensor in state.items() if tensor.is_floating_point() and "mask" not in name]
    torch.save({"model": state, "ema": {"shadow_params": learned}}, folder / "shadow.pth")
    torch.save(state, folder / "protocol.pth", pickle_protocol=4)
    decoder = {n: t for n, t in torch.load(folder / "vae.pth").items() if not n.startswith("encoder.")}
    torch.save(decoder, folder / "decoder.pth")
    return folder


def arguments(checkpoints: Path, out: Path, *further: object, var: str = "var.pth", vae: str = "vae.pth") -> list[str]:
    paths = ("--var", checkpoints / var, "--vae", checkpoints / vae, "--out", out)
    return ["build", *map(str, (*paths, *SHAPE, *FAST, *further))]


# What is built


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_checkpoint_becomes_a_bundle(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    names, out = tmp_path / "names.txt", tmp_path / "bundle"
    names.write_text("\n".join(CLASS_NAMES), encoding="utf-8-sig")
    files = {"var": f"var.{form}", "vae": f"vae.{form}"}
    assert main(arguments(checkpoints, out, "--class-names", names, "--name", "mine", **files)) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: mine, default, {Bundle.open(out).manifest.size / 1e6:.1f} MB\n"
    assert captured.err.startswith("on CPUs without VNNI ")
    assert captured.err.count("\n") == 1
    manifest = Bundle.open(out, verify_hashes=True).manifest
    assert (manifest.name, manifest.recipe["name"], manifest.model.num_tokens) == ("mine", "default", L)
    assert manifest.class_names == tuple(CLASS_NAMES)
    assert f"var.{form}" in (out / "card.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "names.txt"]
    assert main(["verify", str(out), "--threads", "1"]) == 0


def test_a_float32_checkpoint_keeps_its_numbers(
    checkpoints: Path, tmp_path: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle's graphs are those of the model that was saved; it is named after its folder."""
    assert main(arguments(checkpoints, tmp_path / "bundle", "--precision", "fp32")) == 0
    for name in ("weights.data", "generate.onnx"):
        assert (tmp_path / "bundle" / name).read_bytes() == (fp32_bundle / name).read_bytes()
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.name, manifest.class_names) == ("bundle", None)


@pytest.mark.parametrize(("options", "quant_resi"), [((), 0.5), (("--quant-resi", "0.25"), 0.25)])
def test_what_a_checkpoint_never_tells_is_an_option(
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    quant_resi: float,
) -> None:
    sources: list[VARSource] = []

    def no_build(source: VARSource, *further: object) -> None:
        sources.append(source)
        raise NextscaleError("built nothing")

    monkeypatch.setattr("nextscale.compiler.build.build_bundle", no_build)
    assert main(arguments(checkpoints, tmp_path / "bundle", *options)) == 2
    assert sources[0].vqvae.config.quant_resi == quant_resi


def test_weights_are_chosen_by_name(
    checkpoints: Path, tmp_path: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(checkpoints, tmp_path / "bundle", "--precision", "fp32", "--weights", "ema", var="trained.pth")
    assert main(command) == 0
    assert (tmp_path / "bundle/weights.data").read_bytes() == (fp32_bundle / "weights.data").read_bytes()
    capsys.readouterr()
    code = main(arguments(checkpoints, tmp_path / "other", "--vae-weights", "raw"))
    assert_refused(capsys, code, "vae.pth: --vae-weights raw is the name of none of its sets of weights: .")


@pytest.fixture
def var_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "var-tiny", tiny_preset())


@pytest.mark.usefixtures("var_tiny")
def test_a_preset_with_random_weights(tmp_path: Path) -> None:
    seeds = [["--seed", "0"], [], ["--seed", str(2**64 - 1)]]
    for i, seed in enumerate(seeds):
        preset = ["build", "--preset", "var-tiny", "--random-weights", "--precision", "fp32", *FAST]
        assert main([*preset, *seed, "--out", str(tmp_path / str(i))]) == 0
    first, same, other = ((tmp_path / str(i) / "weights.data").read_bytes() for i in range(3))
    assert first == same
    assert first != other


@pytest.mark.usefixtures("var_tiny")
def test_a_preset_says_what_a_checkpoint_must_be(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--var", str(checkpoints / "var.pth"), "--vae", str(checkpoints / "vae.pth")]
    build = ["build", *paths, "--out", str(tmp_path / "bundle"), "--precision", "fp32", *FAST]
    assert main([*build, "--preset", "var-d16"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert main([*build, "--preset", "var-tiny"]) == 0


# What is refused

BAD_CHECKPOINTS = {
    "missing": ("none.pth", "none.pth does not exist"),
    "folder": (".", "is a folder"),
    "truncated pth": ("truncated.pth", "truncated"),
    "truncated safetensors": ("truncated.safetensors", "truncated"),
    "foreign": ("foreign.pth", "is neither a torch (.pth, .pt) nor a .safetensors file"),
    "empty": ("empty.pth", "is empty"),
    "another architecture": ("resnet.pth", "resnet.pth"),
    "the other model": ("vae.pth", "vae.pth"),
    "NaN": ("nan.pth", "NaN or infinite values in head.weight"),
    "overflow": ("overflow.pth", "head.weight (float64) has values that overflow float32"),
    "overflowing logits": ("overflows.pth", "logits are NaN or infinite in stage 0"),
    "control characters": ("control.pth", "1 unexpected: \\x1b[2J (found [1])"),
    "averaged without names": (
        "shadow.pth",
        "model, ema.shadow_params (perhaps averaged and in a form that cannot be read); choose one with --weights,",
    ),
    "pickle protocol": ("protocol.pth", "protocol.pth is written with pickle protocol 4, of which torch's safe loader"),
    "raw and averaged": ("trained.pth", "holds 2 sets of weights: model, ema; choose one with --weights"),
}


@pytest.mark.parametrize(("var", "message"), BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS.keys())
def test_a_bad_checkpoint_is_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], var: str, message: str
) -> None:
    assert_refused(capsys, main(arguments(checkpoints, tmp_path / "bundle", var=var)), message)
    assert not list(tmp_path.iterdir())


def test_a_bad_vae_is_one_line(checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for vae, message in (
        ("var.pth", "var.pth"),
        ("decoder.pth", "decoder.pth has no tensors of encoder.down; expected"),
    ):
        assert_refused(capsys, main(arguments(checkpoints, tmp_path / "bundle", vae=vae)), message)
        assert not list(tmp_path.iterdir())


BAD_NAMES = {
    "too few": ("cat\ndog\n", "2 names, but the model has 10 classes"),
    "empty": ("", "no names; expected one class name per line"),
    "unprintable": ("cat\ta cat\n", "the name of class 0 is not printable text: 'cat\\ta cat'"),
    "no text": (b"\xff\xfe\x00", "not UTF-8 text"),
    "too large": ("x" * (2 * 2**20 + 1), "over 2097152 bytes"),
}


@pytest.mark.parametrize(("content", "message"), BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_bad_class_names_are_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, message: str
) -> None:
    path = tmp_path / "names"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    code = main(arguments(checkpoints, tmp_path / "bundle", "--class-names", path))
    assert_refused(capsys, code, message)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--class-names", "names"), "the name of class 1 is not printable text: 'a\\tdog'"),
        (("--patch-nums", "1,3,2,4"), "two or more positive side lengths in ascending order, found 1,3,2,4"),
        (("--patch-nums", "4"), "two or more positive side lengths in ascending order, found 4"),
        (("--quant-resi", "nan"), "quant_resi must be a number from -1 to 1, found nan"),
        (("--name", "a\tname"), "the name 'a\\tname' cannot name a bundle: expected printable text without"),
        (("--name", " "), "the name ' ' cannot name a bundle"),
    ],
    ids=" ".join,
)
def test_bad_options_are_refused_before_a_model_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: tuple[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names").write_text("a cat\na\tdog\n")
    assert_refused(capsys, main(arguments(tmp_path / "nowhere", tmp_path / "bundle", *option)), message)


def test_heads_that_tensors_cannot_tell_are_asked_for(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(tiny_models(attn_l2_norm=False)[0].state_dict(), tmp_path / "no_l2_norm.pth")
    command = arguments(checkpoints, tmp_path / "bundle", "--precision", "fp32", var=str(tmp_path / "no_l2_norm.pth"))
    assert_refused(capsys, main(command), "give --num-heads or --preset")
    assert main([*command, "--num-heads", "2"]) == 0
    assert Bundle.open(tmp_path / "bundle").model.num_heads == 2


def test_a_structure_that_int8_does_not_know_is_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = random_weights.random_vqvae(replace(tiny_preset().vqvae, quant_conv_ks=5))
    torch.save(vae.state_dict(), tmp_path / "vae.pth")
    code = main(arguments(checkpoints, tmp_path / "bundle", vae=str(tmp_path / "vae.pth")))
    assert_refused(capsys, code, "expected an ungrouped 1x1 or 3x3 kernel")
    assert [path.name for path in tmp_path.iterdir()] == ["vae.pth"]


def test_random_weights_beyond_the_memory_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(presets.PRESETS, "var-vast", tiny_preset(embed_dim=2**22))
    code = main(["build", "--preset", "var-vast", "--random-weights", "--out", str(tmp_path / "bundle")])
    assert_refused(capsys, code, "out of memory")


@pytest.mark.parametrize("path", ["none.txt", "."])
def test_class_names_that_cannot_be_read_are_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    code = main(arguments(checkpoints, tmp_path / "bundle", "--class-names", tmp_path / path))
    assert_refused(capsys, code, "cannot be read")


BAD_USAGE = {
    "nothing": ([], "which model?"),
    "var alone": (["--var", "a.pth"], "which model?"),
    "preset alone": (["--preset", "var-d16"], "which model?"),
    "random of nothing": (["--random-weights"], "--random-weights needs --preset"),
    "unknown preset": (["--preset", "var-d17", "--random-weights"], "did you mean var-d16?"),
    "random checkpoint": (
        ["--preset", "var-d16", "--random-weights", "--var", "a.pth", "--num-heads", "2"],
        "--random-weights does not go with --var, --num-heads",
    ),
    "preset and patch_nums": (
        ["--preset", "var-d16", "--var", "a.pth", "--vae", "b.pth", *SHAPE],
        "--preset does not go with --patch-nums",
    ),
    "preset and quant_resi": (
        ["--preset", "var-d16", "--var", "a.pth", "--vae", "b.pth", "--quant-resi", "0.5"],
        "--preset does not go with --quant-resi",
    ),
    "demo and quant_resi": (["demo", "--quant-resi", "0.3"], "demo does not go with --quant-resi"),
    "demo and weights": (["demo", "--weights", "ema"], "demo does not go with --weights"),
    "random weights of a name": (
        ["--preset", "var-d16", "--random-weights", "--vae-weights", "ema"],
        "--random-weights does not go with --vae-weights",
    ),
    "demo and preset": (["demo", "--preset", "var-d16"], "demo does not go with --preset"),
    "demo with random weights": (["demo", "--random-weights"], "demo does not go with --random-weights"),
    "another model": (["demmo"], "'demmo' is not one of 'demo', 'emoji'"),
    "emoji in another size": (["emoji", "--area", "0.25M"], "emoji does not go with --area"),
    "emoji and a text encoder": (["emoji", "--text", "flan-t5-xl"], "emoji does not go with --text"),
    "emoji and preset": (["emoji", "--preset", "infinity-2b"], "emoji does not go with --preset"),
    "emoji and class names": (["emoji", "--class-names", __file__], "emoji does not go with --class-names"),
    "emoji of no prompts": (["emoji", "--prompts", "none.txt"], "none.txt: no such file"),
    "emoji, not learned": (["emoji", "--recipe", "brecq-w8a8"], "its weights are reconstructed; add --learn"),
    "precision": (["--precision", "int4"], "'int4' is not 'fp32'"),
    "patch_nums": (["--patch-nums", "1;2"], "'1;2' is not a list of integers"),
    "unknown recipe": (["demo", "--recipe", "w3"], 'no recipe is named "w3"; expected a .toml file or one of '),
    "no recipe file": (["demo", "--recipe", "none.toml"], "none.toml: cannot read the recipe"),
    "recipe and precision": (["demo", "--recipe", "default", "--precision", "fp32"], "give one of the two"),
    "no token maps": (["demo", "--calibration", "none"], "none"),
    "no rounding": (["demo", "--recipe", "brecq-w4a6", "--rounding", "none.safetensors"], "none.safetensors"),
    "rounding of full precision": (
        ["demo", "--precision", "fp32", "--rounding", "none", "--calibration", "none"],
        "recipe fp32: full precision does not go with --rounding, --calibration",
    ),
    "rounding of random weights": (
        ["--preset", "var-d16", "--random-weights", "--recipe", "brecq-w4a6"],
        "recipe brecq-w4a6: its weights are reconstructed, which random ones cannot be; choose a recipe that rounds to",
    ),
    "learning of random weights": (
        ["--preset", "var-d16", "--random-weights", "--recipe", "brecq-w4a6", "--learn"],
        "recipe brecq-w4a6: its weights are reconstructed, which random ones cannot be; choose a recipe that rounds to",
    ),
    "learning of nearest": (
        ["demo", "--learn"],
        "recipe default: rounds weights to nearest, so there is nothing to learn; leave out --learn, or choose",
    ),
    "learning of full precision": (
        ["demo", "--precision", "fp32", "--learn"],
        "recipe fp32: full precision does not go with --learn",
    ),
    "learning and learned": (
        ["demo", "--recipe", "brecq-w4a6", "--learn", "--rounding", "none"],
        "--learn does not go with --rounding",
    ),
    "learning's options alone": (
        ["demo", "--iterations", "5", "--batch", "2", "--device", "cpu"],
        "a build without --learn does not go with --iterations, --batch, --device",
    ),
    "no model to round": (["--recipe", "brecq-w4a6"], "which model?"),
    "no calibration": (["--calibration-images", "0"], "0 is not in the range 1<=x<=1000000"),
    "far too many images": (["--calibration-images", str(10**20)], "is not in the range 1<=x<=1000000"),
    "seed negative": (["--seed", "-1"], "-1 is not in the range"),
    "seed too large": (["--seed", str(2**64)], "18446744073709551616 is not in the range"),
}


@pytest.mark.parametrize(("usage", "message"), BAD_USAGE.values(), ids=BAD_USAGE.keys())
def test_bad_usage_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], usage: list[str], message: str
) -> None:
    assert_refused(capsys, main(["build", *usage, "--out", str(tmp_path / "bundle")]), message)
    assert not list(tmp_path.iterdir())


def test_no_out_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(capsys, main(["build", "demo"]), "Missing option '--out'")


def test_an_existing_out_is_refused_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("precious")
    assert_refused(capsys, main(arguments(tmp_path, tmp_path)), f"{tmp_path}: exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("parent", ["/proc", "file"])
def test_an_unwritable_out_is_one_line(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], parent: str
) -> None:
    (tmp_path / "file").write_text("precious")
    code = main(arguments(checkpoints, tmp_path / parent / "bundle"))
    assert_refused(capsys, code, "cannot write there")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_certificate_is_one_line(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nextscale.compiler.fusion_certificate.INTEGER_KERNELS", frozenset({"None"}))
    code = main(arguments(checkpoints, tmp_path / "bundle"))
    assert_refused(capsys, code, "integer layers fell back to float in onnxruntime")
    assert not list(tmp_path.iterdir())


# Recipes


def test_a_recipe_and_token_maps(
    checkpoints: Path, tmp_path: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of `nextscale calibrate`; the manifest tells that they were given, and how they were made."""
    maps, out = tmp_path / "maps", tmp_path / "bundle"
    assert main(["calibrate", str(fp32_bundle), "--out", str(maps), "--images", "3", "--threads", "1"]) == 0
    capsys.readouterr()
    assert main(arguments(checkpoints, out, "--recipe", "rtn-w4a6", "--calibration", maps)) == 0
    assert ": bundle, rtn-w4a6, " in capsys.readouterr().out
    recipe = Bundle.open(out).manifest.recipe
    assert (recipe["name"], recipe["weights"]["bits"], recipe["activations"]["bits"]) == ("rtn-w4a6", 4, 6)
    assert recipe["calibration"]["images"] == 3
    assert recipe["calibration"]["token_maps"]["settings"]["images"] == 3


def test_a_recipe_of_ones_own(checkpoints: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[activations]\ngranularity = "tensor"\n')
    assert main(arguments(checkpoints, tmp_path / "bundle", "--recipe", path)) == 0
    recipe = Bundle.open(tmp_path / "bundle").manifest.recipe
    assert (recipe["name"], recipe["activations"]["granularity"]) == ("mine", "tensor")


def test_token_maps_of_another_model_are_refused(
    checkpoints: Path, tmp_path: Path, fp32_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "maps"
    assert main(["calibrate", str(fp32_bundle), "--out", str(maps), "--images", "2", "--threads", "1"]) == 0
    capsys.readouterr()
    code = main(["build", "demo", "--calibration", str(maps), "--out", str(tmp_path / "bundle")])
    assert_refused(capsys, code, str(maps))
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


def test_rounding_that_a_recipe_needs_or_does_not_take(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, learned = tmp_path / "bundle", tmp_path / "learned.safetensors"
    model = f"--var {checkpoints}/var.pth --vae {checkpoints}/vae.pth --patch-nums 1,2,3,4"
    for recipe, given, further in (
        ("brecq-w4a6", (), "--calibration MAPS --out brecq-w4a6.safetensors` (MAPS: made by `nextscale calibrate`)"),
        ("brecq-w4a6", ("--calibration", "my maps"), "--calibration 'my maps' --out brecq-w4a6.safetensors` and give"),
        ("ours-w4a6", ("--calibration", "m"), "--calibration m --theta THETA --out ours-w4a6.safetensors` (THETA: ch"),
    ):
        code = main(arguments(checkpoints, out, "--recipe", recipe, *given))
        command = f"run `nextscale reconstruct {model} --recipe {recipe} {further}"
        assert_refused(capsys, code, f"recipe {recipe}: its weights are reconstructed; add --learn, or {command}")
    code = main(["build", "demo", "--recipe", "brecq-w4a6", "--out", str(out)])
    assert_refused(capsys, code, "run `nextscale reconstruct demo --recipe brecq-w4a6 --calibration MAPS --out ")
    rounded_down(load_recipe("brecq-w4a6")).save(learned)
    code = main(arguments(checkpoints, out, "--recipe", "rtn-w4a6", "--rounding", learned))
    assert_refused(capsys, code, "recipe rtn-w4a6: rounds weights to nearest, so it takes no --rounding")
    code = main(arguments(checkpoints, out, "--recipe", "brecq-w4a4", "--rounding", learned))
    assert_refused(capsys, code, "recipe brecq-w4a4: the rounding is that of brecq-w4a6, with activations.bits 6")
    assert [path.name for path in tmp_path.iterdir()] == ["learned.safetensors"]
    assert main(arguments(checkpoints, out, "--recipe", "brecq-w4a6", "--rounding", learned)) == 0


def test_the_command_that_is_told_makes_the_rounding(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a number for THETA; fewer iterations are faster."""
    monkeypatch.chdir(tmp_path)
    maps = TokenMaps(np.arange(2), np.zeros((2, L), np.int64), {})
    maps.save(tmp_path / "maps")
    build = arguments(checkpoints, tmp_path / "bundle", "--recipe", "ours-w4a6", "--calibration", "maps")
    assert main(build) == 2
    told = re.search("run `nextscale (.*?)`", capsys.readouterr().err)
    assert told is not None
    assert main([*shlex.split(told[1].replace("THETA", "0.1")), "--iterations", "1"]) == 0
    assert main([*build, "--rounding", "ours-w4a6.safetensors"]) == 0


# Processes


def test_a_full_disk_is_one_line(checkpoints: Path, tmp_path: Path) -> None:
    """A limit on file sizes fails a write where a full disk would."""
    limit = 100_000
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(path=sys.path), *arguments(checkpoints, tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: {tmp_path / 'bundle'}: cannot be written (File too large); nothing was left there\n"
    assert not list(tmp_path.iterdir())


def build_until(process: subprocess.Popen[str], folder: Path, sent: signal.Signals) -> tuple[str, str]:
    """Send a signal while the calibration is under way; stdout and stderr."""
    try:
        deadline = time.monotonic() + 60
        while not [*folder.glob(CALIBRATING)] and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(sent)
        return process.communicate(timeout=30)
    finally:
        process.kill()


def endless_build(checkpoints: Path, out: Path) -> subprocess.Popen[str]:
    """A build that calibrates on far more images than a test waits for."""
    command = arguments(checkpoints, out, "--calibration-images", 100_000)
    return subprocess.Popen(
        [sys.executable, "-c", RUN.format(path=sys.path), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_an_interrupt_leaves_nothing(checkpoints: Path, tmp_path: Path, sent: signal.Signals) -> None:
    process = endless_build(checkpoints, tmp_path / "bundle")
    out, error = build_until(process, tmp_path, sent)
    assert (process.returncode, out, error) == (130, "", "error: interrupted; nothing half-written was left\n")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_build_left_goes_with_the_next(checkpoints: Path, tmp_path: Path) -> None:
    build_until(endless_build(checkpoints, tmp_path / "bundle"), tmp_path, signal.SIGKILL)
    assert [*tmp_path.glob(CALIBRATING)]
    assert main(arguments(checkpoints, tmp_path / "bundle")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
