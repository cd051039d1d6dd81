"""`generate.onnx` against the streaming graphs: the same tokens, whatever the batch and the number of threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_model import ONE_THREAD, L, V, tiny_models, tiny_source

from nextscale.export.generate_graph import build_generate_graph, initial_shape, present_name
from nextscale.export.var.decoder_graph import build_decoder_graph
from nextscale.export.var.stage_graph import build_stage_graph
from nextscale.runtime import Generation, Generator
from nextscale.runtime._var_request import var_request

LABELS = [3, 0, 7, 9, 10]
REQUEST = var_request(tiny_source().model_info())
NAMES = [item.name for item in REQUEST]
SETTINGS = [{"top_k": 1, "top_p": 0.0}, {"top_k": 0, "top_p": 0.0}, {"top_k": 40, "top_p": 0.9}]


@pytest.fixture
def generator(request: pytest.FixtureRequest, tiny_bundle: Path) -> Generator:
    found: Generator = request.getfixturevalue(f"{tiny_bundle.name}_generator")
    return found


def streamed(generator: Generator, labels: list[int], **settings: float) -> Generation:
    return generator.generate(labels, on_stage=lambda stage: None, **settings)  # type: ignore[arg-type]


def assert_same(found: Generation, expected: Generation) -> None:
    np.testing.assert_array_equal(found.token_maps, expected.token_maps)
    np.testing.assert_array_equal(found.images, expected.images)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("labels", [LABELS[:1], LABELS], ids=["batch 1", "batch 5"])
def test_one_call_makes_the_tokens_of_streaming(
    generator: Generator, labels: list[int], settings: dict[str, float]
) -> None:
    assert_same(generator.generate(labels, **settings), streamed(generator, labels, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_one_call_makes_the_tokens_of_streaming_for_many_seeds(generator: Generator, seed: int) -> None:
    assert_same(generator.generate(LABELS, seed=seed), streamed(generator, LABELS, seed=seed))


def test_forced_tokens_are_taken_in_one_call(generator: Generator) -> None:
    forced = np.random.default_rng(0).integers(-1, V, (2, L))
    free = generator.generate([3, 4], forced_tokens=forced)
    np.testing.assert_array_equal(free.token_maps[forced >= 0], forced[forced >= 0])
    again = generator.generate([3, 4], forced_tokens=free.token_maps, seed=99)
    assert_same(again, free)


def test_an_image_does_not_depend_on_its_batch(generator: Generator) -> None:
    together = generator.generate(LABELS, seed=5).token_maps
    for i, label in enumerate(LABELS):
        alone = generator.generate([label], seed=5, first_image=i).token_maps
        np.testing.assert_array_equal(alone[0], together[i])
    np.testing.assert_array_equal(generator.generate(LABELS, seed=5, batch_size=2).token_maps, together)


def test_tokens_do_not_depend_on_the_number_of_threads(tiny_bundle: Path, generator: Generator) -> None:
    two = Generator(tiny_bundle, replace(ONE_THREAD, threads=2))
    assert_same(two.generate(LABELS), generator.generate(LABELS))


def test_classes_seeds_and_guidance_matter(generator: Generator) -> None:
    """So that the identities above are not those of a constant."""
    tokens = generator.generate([3], seed=1).token_maps
    others = [generator.generate([4], seed=1), generator.generate([3], seed=2), generator.generate([3], cfg_scale=0)]
    assert all(np.mean(other.token_maps != tokens) > 0.2 for other in others)


# The graph


@pytest.fixture(scope="module")
def graphs() -> tuple[ir.Model, ir.Model]:
    var, vqvae = tiny_models()
    return build_stage_graph(var, vqvae.quantize), build_decoder_graph(vqvae)


def structure(graph: ir.Graph) -> list[list[object]]:
    """Everything that a graph's nodes and values are called."""
    nodes: list[list[object]] = [
        [node.name, node.op_type, *(value and value.name for value in (*node.inputs, *node.outputs))]
        for node in graph.all_nodes()
    ]
    ends = [[value.name for value in values] for values in (graph.inputs, graph.outputs)]
    return [*nodes, list(graph.initializers), *ends]


def test_composing_changes_neither_graph(graphs: tuple[ir.Model, ir.Model]) -> None:
    before = [structure(model.graph) for model in graphs]
    build_generate_graph(*graphs, num_stages=4, request=REQUEST)
    assert [structure(model.graph) for model in graphs] == before


def test_weights_are_shared_not_copied(graphs: tuple[ir.Model, ir.Model]) -> None:
    composed = build_generate_graph(*graphs, num_stages=4, request=REQUEST).graph.initializers
    for prefix, model in zip(("stage/", "decoder/"), graphs, strict=True):
        for name, value in model.graph.initializers.items():
            assert composed[prefix + name].const_value is value.const_value


def test_the_loops_body_is_the_stage_graph(graphs: tuple[ir.Model, ir.Model]) -> None:
    """The same operators in the same order; the body adds two that carry the condition and the tokens."""
    composed = build_generate_graph(*graphs, num_stages=4, request=REQUEST).graph
    (loop,) = (node for node in composed if node.op_type == "Loop")
    body = [node.op_type for node in loop.attributes["body"].as_graph()]
    assert body == [node.op_type for node in graphs[0].graph] + ["Identity", "Concat"]
    decoder = [node.op_type for node in graphs[1].graph]
    assert [node.op_type for node in composed][-len(decoder) :] == decoder


def test_inputs_and_outputs_are_the_contract(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "generate.onnx", load_external_data=False).graph
    assert tuple(value.name for value in graph.input) == tuple(NAMES)
    assert [value.name for value in graph.output] == ["images", "token_maps"]
    shapes = [[dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in graph.output]
    assert shapes == [["B", 8, 8, 3], ["B", L]]


@pytest.mark.parametrize("name", ["generate", "stage", "decoder"])
def test_every_graph_passes_the_checker(tiny_bundle: Path, name: str) -> None:
    onnx.checker.check_model(str(tiny_bundle / f"{name}.onnx"), full_check=True)


def test_names_of_the_state() -> None:
    assert present_name("f_hat") == "present.f_hat"
    assert present_name("past_key_values.12.value") == "present.12.value"


def test_growing_dimensions_start_at_0(graphs: tuple[ir.Model, ir.Model]) -> None:
    shapes = {value.name: initial_shape(value) for value in graphs[0].graph.inputs if value.name not in NAMES}
    del shapes["stage"]
    assert shapes.pop("f_hat") == ["B", 32, 4, 4]
    assert shapes.pop("modulation") == ["2B", 0, 64]
    assert set(map(tuple, shapes.values())) == {("2B", 2, 32, 0), ("2B", 2, 0, 32)}
