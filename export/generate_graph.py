"""`generate.onnx`: the stage graph in a Loop over the stages, then the decoder, in one call.

The Loop's body is the stage graph itself, so both forms of a bundle hold the same operators in the same order. One
graph serves all sizes of a bundle: what a size decides is a table with a row for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from nextscale.export.graph_builder import Constants, add_output, dimensions, finish, new_builder, scalar_at
from nextscale.graph_passes._graph_builder import GraphBuilder
from nextscale.runtime._manifest import BATCH, RequestInput
from nextscale.runtime._sizes import SIZE_SYMBOLS, SizeInfo


def state_names(stage_model: ir.Model, request: Sequence[RequestInput]) -> list[tuple[str, str]]:
    """The stage graph's carried state as (input name, output name), in the order of the inputs."""
    asked = {item.name for item in request}
    inputs = [value.name for value in stage_model.graph.inputs if value.name not in (*asked, "stage")]
    return [(name, present_name(name)) for name in inputs if name is not None]


def present_name(input_name: str) -> str:
    """The output that continues a state input: f_hat -> present.f_hat, past_key_values.0.key -> present.0.key."""
    return f"present.{input_name.removeprefix('past_key_values.')}"


def initial_shape(state: ir.Value) -> list[int | str]:
    """A state input's shape before stage 0: the dimensions that neither the batch nor the size decides start at 0."""
    known = (BATCH, "2B", *SIZE_SYMBOLS)
    return [dim if isinstance(dim, int) or dim in known else 0 for dim in dimensions(state)]


def build_generate_graph(
    stage_model: ir.Model,
    decoder_model: ir.Model,
    num_stages: int,
    request: Sequence[RequestInput],
    sizes: Sequence[SizeInfo] = (),
) -> ir.Model:
    """Compose the two graphs; neither is changed, and their weights are shared, not copied.

    Args:
        stage_model, decoder_model: with the contract of docs/bundle.md.
        num_stages: of an image, where there is one size.
        request: the stage graph's inputs that a request gives; all others but the stage are state. Token maps have the
            shape of the forced tokens.
        sizes: those of the bundle, of which the input of kind "size" chooses one; empty where it has one.
    """
    stage_graph, decoder_graph = stage_model.graph.clone(), decoder_model.graph.clone()
    builder = new_builder("generate")
    for graph in (stage_graph, decoder_graph):
        for domain, version in graph.opset_imports.items():
            builder.graph.opset_imports.setdefault(domain, version)
    op, constants = builder.op, Constants(builder)
    state = state_names(stage_model, request)
    by_name = {value.name: value for value in stage_graph.inputs}
    names = [item.name for item in request]
    requests = [_declare(builder, by_name[name]) for name in names]
    forced = by_name[next(item.name for item in request if item.kind == "forced_tokens")]

    rows = next(value for value in requests if dimensions(value)[:1] == [BATCH])
    images = op.Shape(rows, end=1) if len(dimensions(rows)) > 1 else op.Shape(rows)
    trips: ir.Value | int = num_stages
    decided: dict[str, ir.Value] = {}
    if sizes:
        (size,) = [value for item, value in zip(request, requests, strict=True) if item.kind == "size"]
        trips, decided = _decided_by_size(op, constants, size, sizes)
    initial = []
    for name, _ in state:
        shape = [_dimension(op, images, decided, dim) for dim in initial_shape(by_name[name])]
        dtype = by_name[name].dtype
        assert dtype is not None
        zero = ir.tensor(np.zeros(1, dtype.numpy()))
        initial.append(op.ConstantOfShape(op.Concat(*shape, axis=0), value=zero, _outputs=[f"initial.{name}"]))
    no_tokens = op.ConstantOfShape(
        op.Concat(images, constants("zero_1d", np.array([0])), *_further(constants, forced), axis=0),
        value=ir.tensor([0], dtype=ir.DataType.INT64),
        _outputs=["initial.token_maps"],
    )
    body = _loop_body(
        builder.graph, stage_graph, dict(zip(names, requests, strict=True)), state, dimensions(forced)[2:]
    )
    outputs = ["final." + name for name, _ in state]
    *final, token_maps = op.Loop(
        trips, None, *initial, no_tokens, body=body, _outputs=[*outputs, "token_maps"], _name="stages"
    )
    f_hat = final[[name for name, _ in state].index("f_hat")]
    pictures = _inline(builder.graph, decoder_graph, {"f_hat": f_hat}, "images")
    add_output(builder, pictures, "images", ir.DataType.UINT8, dimensions(decoder_model.graph.outputs[0]))
    add_output(builder, token_maps, "token_maps", ir.DataType.INT64, dimensions(forced))
    return finish(builder)


def _further(constants: Constants, forced: ir.Value) -> list[ir.Value]:
    """The sizes of a token map behind its length, which are those of the forced tokens: int64 [n] or nothing."""
    sizes = dimensions(forced)[2:]
    return [constants("token_sizes", np.array(sizes))] if sizes else []


def _declare(builder: GraphBuilder, like: ir.Value) -> ir.Value:
    return builder.input(str(like.name), type=like.type, shape=like.shape)


def _decided_by_size(
    op: OpBuilder, constants: Constants, size: ir.Value, sizes: Sequence[SizeInfo]
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """The number of stages, int64 [], and height and width of the latent, int64 [1] each, of the size, int64 []."""
    num_stages = constants("size.num_stages", np.array([len(item.stage_sizes) for item in sizes]))
    latents = {
        symbol: constants(f"size.latent_{name}", np.array([item.latent_size[axis] for item in sizes]))
        for axis, (symbol, name) in enumerate((("h", "height"), ("w", "width")))
    }
    return op.Gather(num_stages, size), {symbol: scalar_at(op, table, size) for symbol, table in latents.items()}


def _dimension(op: OpBuilder, images: ir.Value, decided: dict[str, ir.Value], dim: int | str) -> ir.Value:
    """One dimension of a state's initial shape as int64 [1]; `images` is B, `decided` what the size decides, too."""
    if dim == BATCH:
        return images
    if dim in decided:
        return decided[str(dim)]
    return op.Mul(images, [2]) if dim == "2B" else op.Constant(value_ints=[dim])


def _adopt(main: ir.Graph, graph: ir.Graph, prefix: str) -> None:
    """Make `graph` fit to live in `main`: its initializers move there and all its names get the prefix."""
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        value.name = prefix + name
        main.register_initializer(value)
    for value in graph.inputs:
        value.name = f"{prefix}{value.name}"
    for node in graph.all_nodes():
        node.name = f"{prefix}{node.name}"
        for output in node.outputs:
            if output.name:  # else it is left out
                output.name = f"{prefix}{output.name}"


def _loop_body(
    main: ir.Graph,
    stage_graph: ir.Graph,
    requests: dict[str, ir.Value],
    state: list[tuple[str, str]],
    token_sizes: Sequence[int | str],
) -> ir.Graph:
    """The stage graph as a Loop's body: (stage, condition, state..., tokens so far) -> the same, one stage later."""
    inputs = {str(value.name): value for value in stage_graph.inputs}
    outputs = {str(value.name): value for value in stage_graph.outputs}
    _adopt(main, stage_graph, "stage/")
    for name, outer in requests.items():
        inputs[name].replace_all_uses_with(outer)
    proceed = ir.Value(name="stage/proceed", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    so_far = ir.Value(
        name="stage/token_maps.so_far", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", None, *token_sizes])
    )
    go_on = ir.node("Identity", [proceed], name="stage/go_on")
    append = ir.node("Concat", [so_far, outputs["tokens"]], {"axis": 1}, name="stage/append_tokens")
    go_on.outputs[0].name, append.outputs[0].name = "stage/go_on", "stage/token_maps"
    stage_graph.extend([go_on, append])
    carried = [inputs[name] for name, _ in state]
    stage_graph.inputs[:] = [inputs["stage"], proceed, *carried, so_far]
    stage_graph.outputs[:] = [go_on.outputs[0], *(outputs[name] for _, name in state), append.outputs[0]]
    return stage_graph


def _inline(main: ir.Graph, graph: ir.Graph, inputs: dict[str, ir.Value], output_name: str) -> ir.Value:
    """Append `graph`'s nodes to `main`, its inputs replaced; returns the output asked for."""
    (output,) = (value for value in graph.outputs if value.name == output_name)
    for value in graph.inputs:
        value.replace_all_uses_with(inputs[str(value.name)])
    _adopt(main, graph, "decoder/")
    graph.outputs.clear()
    nodes = list(graph)
    graph.remove(nodes)
    main.extend(nodes)
    return output
