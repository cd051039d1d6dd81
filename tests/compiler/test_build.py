from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tiny_model import (
    CALIBRATION_IMAGES,
    CLASS_NAMES,
    NUM_CLASSES,
    ONE_THREAD,
    PATCH_NUMS,
    RECIPES,
    V,
    build_tiny,
    no_progress,
    tiny_models,
    tiny_options,
    tiny_recipe,
    tiny_source,
)

from nextscale.compiler import build
from nextscale.compiler.build import build_bundle
from nextscale.compiler.fusion_certificate import CertifiedLayer, FusionCertificate
from nextscale.export import bundle_writer
from nextscale.graph_passes.recipe import DecoderRecipe
from nextscale.models.var.sources import VARSource
from nextscale.runtime import Bundle, Generator
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._verify import verify

INT8 = tiny_options("default")
STEPS = {
    "fp32": ["building graphs", "writing", "generating the stored tokens"],
    "int8": [
        "building graphs",
        "writing the full-precision model for calibration",
        "calibrating",
        "observing distributions",
        "calibrating the decoder",
        "observing what convolutions see",
        "calibrating the encoder",
        "quantizing",
        "writing",
        "checking kernels",
        "emulating CPUs without VNNI",
        "sampling in full precision",
        "comparing with full precision",
        "generating the stored tokens",
    ],
}


def test_a_bundle_passes_its_own_checks(tiny_bundle: Path) -> None:
    report = verify(Bundle.open(tiny_bundle, verify_hashes=True), ONE_THREAD)
    assert report.passed, report
    assert [check.name for check in report.checks] == ["files", "contract", "logits", "tokens", "encoder", "streaming"]


def test_the_manifest_describes_the_model(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    model = manifest.model
    assert (model.num_classes, model.patch_nums, model.vocab_size) == (NUM_CLASSES, PATCH_NUMS, V)
    assert (model.depth, model.embed_dim, model.num_heads) == (2, 64, 2)
    assert (model.image_size, model.latent_channels, model.latent_size) == ((8, 8), 32, (4, 4))
    assert manifest.class_names == tuple(CLASS_NAMES)
    assert manifest.recipe["name"] == RECIPES[tiny_bundle.name]
    assert manifest.licence == "MIT"


def test_the_recipe_tells_how_int8_was_made(int8_bundle: Path, fp32_bundle: Path) -> None:
    recipe = Bundle.open(int8_bundle).manifest.recipe
    expected = tiny_recipe("default").as_dict()
    assert recipe["calibration"] == {"images": CALIBRATION_IMAGES, "seed": 0, "cfg_scale": 4.0}
    for part in ("name", "weights", "activations", "attention", "equalization", "layers"):
        assert recipe[part] == expected[part]
    assert recipe["layers"]["word_embed"] == "float"
    assert recipe["cache"] == "float"
    assert Bundle.open(fp32_bundle).manifest.recipe == {"name": "fp32"}


def test_the_card_tells_what_the_bundle_is(tiny_bundle: Path) -> None:
    card = (tiny_bundle / "card.md").read_text()
    for text in (
        "# tiny\n",
        "For tests.",
        "8 x 8 RGB, 10 classes",
        "4: 1, 2, 3, 4 (30 tokens)",
        RECIPES[tiny_bundle.name],
    ):
        assert text in card


def test_the_stored_tokens_are_the_bundles_own(tiny_bundle: Path) -> None:
    """Greedy, of two classes."""
    bundle = Bundle.open(tiny_bundle)
    record = bundle.manifest.verify
    assert record.inputs == {"class_labels": [0, NUM_CLASSES - 1], "cfg_scale": 1.5, "top_k": 1, "top_p": 0.0}
    greedy = Generator(bundle, ONE_THREAD).generate([0, NUM_CLASSES - 1], cfg_scale=1.5, top_k=1, top_p=0.0)
    np.testing.assert_array_equal(greedy.token_maps, record.token_maps)


def test_int8_weights_take_little_more_than_a_quarter(int8_bundle: Path, fp32_bundle: Path) -> None:
    """Of this model 5% is embeddings, the codebook, biases and norms, which stay float32."""
    sizes = [(path / "weights.data").stat().st_size for path in (int8_bundle, fp32_bundle)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("options", [{"attn_l2_norm": False}, {"shared_aln": True}], ids=str)
def test_int8_of_other_models(tmp_path: Path, options: dict[str, bool]) -> None:
    bundle = Bundle.open(build_tiny(tmp_path / "bundle", "int8", tiny_source(**options)))
    assert verify(bundle, ONE_THREAD).passed


def test_a_decoder_that_stays_float(tmp_path: Path, fp32_bundle: Path) -> None:
    """It is that of full precision, and nothing says that it has integer layers."""
    options = tiny_options("nearest-w4a4")
    options = dataclasses.replace(
        options, recipe=dataclasses.replace(options.recipe, decoder=DecoderRecipe(precision="float"))
    )
    bundle = build_bundle(tiny_source(), tmp_path / "bundle", options, no_progress)
    assert verify(bundle, ONE_THREAD).passed
    found, full = (ir.load(folder / "decoder.onnx").graph for folder in (bundle.path, fp32_bundle))
    assert [(node.name, node.op_type) for node in found] == [(node.name, node.op_type) for node in full]
    for name in full.initializers:
        one, other = (graph.initializers[name].const_value for graph in (found, full))
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    recipe = bundle.manifest.recipe
    assert recipe["decoder"]["precision"] == "float"
    assert recipe["kernels"]["decoder"] == {}
    assert "blocks.0.ffn.fc1.weight" in recipe["kernels"]["stage"]
    assert not [name for name in recipe["saturation"]["can_saturate"] if name.startswith("decoder")]


def test_a_model_of_one_class_has_one_verify_label_twice(tmp_path: Path) -> None:
    source = dataclasses.replace(tiny_source(num_classes=1), class_names=None)
    bundle = Bundle.open(build_tiny(tmp_path / "bundle", "fp32", source))
    assert bundle.manifest.verify.inputs["class_labels"] == [0, 0]
    assert bundle.manifest.class_names is None


def test_building_again_takes_the_same_steps_and_gives_the_same_bytes(tiny_bundle: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    precision = tiny_bundle.name
    again = tmp_path / "again"
    options = tiny_options(RECIPES[precision])
    build_bundle(tiny_source(), again, options, lambda *step: seen.append((*step, 0, 0)[:3]))
    assert list(dict.fromkeys(step for step, _, _ in seen)) == STEPS[precision]
    images = [(done, total) for step, done, total in seen if step == "calibrating"]
    assert images == ([(0, 5), (2, 5), (4, 5), (5, 5)] if precision == "int8" else [])
    names = sorted(path.name for path in tiny_bundle.iterdir())
    assert sorted(path.name for path in again.iterdir()) == names
    for name in names:
        assert (again / name).read_bytes() == (tiny_bundle / name).read_bytes(), name


@pytest.mark.parametrize("step", ["building graphs", "calibrating", "writing", "generating the stored tokens"])
def test_an_interrupt_at_any_step_leaves_nothing(tmp_path: Path, step: str) -> None:
    def interrupt(name: str, done: int = 0, total: int = 0) -> None:
        if name == step and done == (2 if step == "calibrating" else 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(tiny_source(), tmp_path / "bundle", INT8, interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [0, 40])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """At the first tensor, of the model for calibration, and later."""
    append, calls = bundle_writer._append, iter(range(1000))

    def append_until_full(*arguments: object) -> object:
        if next(calls) == write:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle_writer, "_append", append_until_full)
    with pytest.raises(OutputError, match="No space left on device"):
        build_bundle(tiny_source(), tmp_path / "bundle", INT8, no_progress)
    assert not list(tmp_path.iterdir())


def test_a_layer_that_falls_back_to_float_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fallen = FusionCertificate("stage.onnx", (CertifiedLayer("blocks.0.ffn.fc1.weight.codes", ("Gemm",)),))
    monkeypatch.setattr(build, "certify", lambda path, options: fallen)
    with pytest.raises(NextscaleError, match=r"layers fell back to float .*fc1\.weight\.codes -> Gemm"):
        build_bundle(tiny_source(), tmp_path / "bundle", INT8, no_progress)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_before_any_work(fp32_bundle: Path) -> None:
    before = (fp32_bundle / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        build_bundle(tiny_source(), fp32_bundle, INT8, lambda *step: pytest.fail("began"))
    assert (fp32_bundle / "manifest.json").read_bytes() == before


def test_a_source_describes_its_model() -> None:
    source = VARSource(*tiny_models(), "tiny", "")
    assert source.model_info() == tiny_source().model_info()
