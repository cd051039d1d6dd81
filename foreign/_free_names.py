"""Names that passes give to what they make, free for them: a model that nextscale made, say, has such names itself."""

from __future__ import annotations

import onnx_ir as ir

from nextscale.foreign._names import Names, values_of

# What passes put behind the name of a weight, an activation or a node.
BEHIND = (
    ".scale", ".codes", ".packed", ".zero_point", ".no_zero_point", ".unpacked", ".replaced",
    "/quantize", "/cap", "/unpack", "/center", "/scores", "/integer",
    "/convolution", "/known", ".input", ".weight", ".bias", ".exact",
)  # fmt: skip


def free_names(model: ir.Model) -> None:
    """Rename, in place, what a pass could take for its own or for what it is about to make; inputs and outputs stay."""
    names, values = Names(model), [value for graph in model.graphs() for value in values_of(graph)]
    nodes = list(model.graph.all_nodes())
    taken = {str(value.name) for value in values} | {str(node.name) for node in nodes}
    border = {*model.graph.inputs, *model.graph.outputs}
    for value in dict.fromkeys(values):
        if value not in border and _is_behind(str(value.name), taken):
            value.name = names.value(f"own_{value.name}")
    for node in nodes:
        if _is_behind(str(node.name), taken):
            node.name = names.node(f"own_{node.name}")


def _is_behind(name: str, taken: set[str]) -> bool:
    """Whether it is a name of the model with one of the endings, and perhaps more behind that."""
    return any(name[:place] in taken for end in BEHIND for place in _places(name, end))


def _places(name: str, end: str) -> list[int]:
    return [place for place in range(1, len(name)) if name.startswith(end, place)]
