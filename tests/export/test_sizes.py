"""One generate.onnx for several sizes, and bundles with sizes and a tokenizer, written from a hand-made stage graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
from fake_bundle import in_download_cache, read_manifest
from fake_sizes_bundle import LENGTHS, SIZES, write_fake_sizes_bundle

from nextscale.export._card import bundle_card
from nextscale.export.bundle_writer import BundleInfo, write_graphs, write_manifest
from nextscale.export.generate_graph import build_generate_graph, initial_shape, state_names
from nextscale.runtime import Bundle, Generation, Generator
from nextscale.runtime._manifest import TokenizerInfo
from nextscale.runtime._verify import verify
from nextscale.runtime._words import known_words

PROMPTS = ["a fox", "two"]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_sizes_bundle(tmp_path_factory.mktemp("bundles") / "fake")


@pytest.fixture(scope="module")
def graphs(fake: Path) -> dict[str, ir.Model]:
    """Those of the fake bundle but generate.onnx."""
    return {role: as_built(fake, role) for role in ("stage", "decoder", "encoder", "text_encoder")}


def as_built(fake: Path, role: str) -> ir.Model:
    """A graph as the builders would leave it: no functions, a name for each node, rows with guidance called 2B."""
    model = onnx.inliner.inline_local_functions(onnx.load(fake / f"{role}.onnx"))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}.{number}"
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "R":
                dim.dim_param = "2B"
    return ir.from_proto(model)


def composed(bundle: Bundle, graphs: dict[str, ir.Model]) -> ir.Model:
    manifest = bundle.manifest
    return build_generate_graph(graphs["stage"], graphs["decoder"], 0, manifest.request, manifest.sizes)


@pytest.fixture(scope="module")
def written(fake: Path, graphs: dict[str, ir.Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake bundle as the writer writes it, with a generate.onnx that was composed and another tokenizer."""
    folder = tmp_path_factory.mktemp("written")
    bundle = Bundle.open(fake)
    manifest = bundle.manifest
    models = {"generate": composed(bundle, graphs), **graphs}
    write_graphs(folder, models)
    (model_file := folder.with_name("vocabulary")).write_bytes(b"pieces")
    (words_file := folder.with_name("list")).write_text("fox\n")
    info = BundleInfo(
        *(manifest.name, manifest.family, manifest.model, manifest.request, manifest.recipe, None, "MIT", "# Card\n"),
        sizes=manifest.sizes,
        tokenizer=TokenizerInfo("sentencepiece", 40, "spiece.model"),
        tokenizer_file=model_file,
        words_file=words_file,
    )
    write_manifest(folder, models, info, read_manifest(fake)["verify"])
    return folder


def generated(folder: Path, **settings: Any) -> Generation:
    features = [np.linspace(0, 1, 8 * length, dtype=np.float32).reshape(length, 8) for length in (3, 5)]
    return Generator(folder).generate(inputs={"text_features": features, **settings.pop("inputs", {})}, **settings)


def test_the_words_that_the_model_saw_lie_beside_it(fake: Path, written: Path) -> None:
    assert Bundle.open(written, verify_hashes=True).manifest.files.keys() >= {"words.txt", "spiece.model"}
    assert known_words(Bundle.open(written)) == {"fox"}
    assert known_words(Bundle.open(fake)) is None


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("seed", range(3))
def test_the_composed_graph_makes_what_the_hand_made_one_does(fake: Path, written: Path, index: int, seed: int) -> None:
    found, expected = (generated(folder, inputs={"size": index}, seed=seed) for folder in (written, fake))
    assert found.token_maps.shape == (2, LENGTHS[index], 2)
    assert found.images.shape == (2, *SIZES[index]["image_size"], 3)
    np.testing.assert_array_equal(found.token_maps, expected.token_maps)
    np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.parametrize("index", range(3))
def test_one_call_makes_the_tokens_of_streaming(written: Path, index: int) -> None:
    single = generated(written, inputs={"size": index})
    streamed = generated(written, inputs={"size": index}, on_stage=lambda stage: None)
    np.testing.assert_array_equal(single.token_maps, streamed.token_maps)
    np.testing.assert_array_equal(single.images, streamed.images)


def test_the_loop_runs_as_many_stages_as_the_size_has(fake: Path, graphs: dict[str, ir.Model]) -> None:
    graph = composed(Bundle.open(fake), graphs).graph
    (loop,) = (node for node in graph if node.op_type == "Loop")
    trips = loop.inputs[0]
    assert trips is not None
    producer = trips.producer()
    assert producer is not None
    table, size = producer.inputs
    assert (producer.op_type, size.name if size else None) == ("Gather", "size")
    assert table is not None
    assert table.const_value is not None
    assert table.const_value.numpy().tolist() == [len(size["stage_sizes"]) for size in SIZES]


def test_states_begin_at_the_size(fake: Path, graphs: dict[str, ir.Model]) -> None:
    """As the fake bundle's manifest says it by hand."""
    values = {value.name: value for value in graphs["stage"].graph.inputs}
    states = {item["input"]: item["initial_shape"] for item in read_manifest(fake)["graphs"]["stage"]["state"]}
    names = [name for name, _ in state_names(graphs["stage"], Bundle.open(fake).manifest.request)]
    assert {name: initial_shape(values[name]) for name in names} == states


def test_a_state_begins_as_its_type(fake: Path, graphs: dict[str, ir.Model]) -> None:
    """Such as the codes of a cache of 8 bits."""
    stage, manifest = as_built(fake, "stage"), Bundle.open(fake).manifest
    key = next(value for value in stage.graph.inputs if value.name == "past_key_values.0.key")
    key.dtype = ir.DataType.INT8
    graph = build_generate_graph(stage, graphs["decoder"], 0, manifest.request, manifest.sizes).graph
    (begin,) = (node for node in graph if node.outputs[0].name == "v_initial.past_key_values.0.key")
    assert begin.attributes["value"].as_tensor().dtype == ir.DataType.INT8


def test_the_written_manifest_is_the_hand_made_one(fake: Path, written: Path) -> None:
    found, expected = Bundle.open(written, verify_hashes=True).manifest, Bundle.open(fake).manifest
    for name in ("model", "sizes", "request", "verify", "family"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.graphs["stage"].state == expected.graphs["stage"].state
    assert found.tokenizer == TokenizerInfo("sentencepiece", 40, "spiece.model")
    assert (written / "spiece.model").read_bytes() == b"pieces"
    document = json.loads((written / "manifest.json").read_text())
    assert document["sizes"] == SIZES
    assert "spiece.model" in document["files"]


def test_a_linked_tokenizer_is_no_weights(written: Path, tmp_path: Path) -> None:
    """As a download cache keeps it: ONNX Runtime is handed the weights alone."""
    bundle = Bundle.open(in_download_cache(written, tmp_path / "cache"))
    assert bundle.linked_data().keys() == {"weights.data"}
    assert generated(bundle.folder).images.shape == (2, 8, 8, 3)


def test_a_bundle_of_features_passes_verify(fake: Path, graphs: dict[str, ir.Model], tmp_path: Path) -> None:
    """Its stored texts are those of a formula, and its tokens those of the composed graph."""
    alone = write_fake_sizes_bundle(tmp_path / "features", text_encoder=False)
    manifest = Bundle.open(alone).manifest
    models = {"generate": composed(Bundle.open(fake), graphs), **graphs}
    del models["text_encoder"]
    (tmp_path / "written").mkdir()
    write_graphs(tmp_path / "written", models)
    info = BundleInfo(
        *(manifest.name, manifest.family, manifest.model, manifest.request, manifest.recipe, None, "MIT", "# Card\n"),
        sizes=manifest.sizes,
    )
    write_manifest(tmp_path / "written", models, info, read_manifest(alone)["verify"])
    report = verify(Bundle.open(tmp_path / "written"))
    assert report.passed, report
    assert [check.name for check in report.checks] == ["files", "contract", "logits", "tokens", "encoder", "streaming"]


def test_the_card_lists_the_sizes(fake: Path) -> None:
    manifest = Bundle.open(fake).manifest
    info = BundleInfo(
        *("a", manifest.family, manifest.model, manifest.request, {"name": "fp32"}, None, "MIT", ""),
        sizes=manifest.sizes,
    )
    lines = bundle_card(info, "Words.").splitlines()
    for line in (
        "| pictures | RGB of texts: 0.01M 1:1 2:3; 0.02M 1:1 |",
        "| stages | 2 to 3 (5 to 21 tokens) |",
        "| tokens | 2 bits |",
    ):
        assert line in lines
