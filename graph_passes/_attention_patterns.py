"""Find attention in any ONNX graph by its operators, whatever its nodes are called.

    query, key -> MatMul -> (Mul or Div by a constant, Add of a mask)* -> Softmax over the last axis -> MatMul <- value

Identity may stand anywhere between. A mask may also be a Where that puts a constant in the place of scores, and scores
may be reshaped as long as the last two axes stay. Nothing but the second MatMul may read the softmax, so that a pass
may change what the product sees; or else the guard that gives a query without visible tokens zeros in place of NaN:

    Softmax -> Where(IsNaN(weights), 0, weights) -> MatMul

Operands have two axes or more, the same number in a product, and none is repeated to fit the other. Graphs of opset 13
or later, where Softmax works on the last axis unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from nextscale.graph_passes._graph_edit import input_of, is_operator

# Operators that may stand between a product and the softmax; more are no attention's, and could take long to follow.
DEEPEST = 12
RESHAPES, MASKS = ("Reshape", "Unsqueeze", "Squeeze"), ("Add", "Where")


@dataclass(frozen=True)
class AttentionPattern:
    """softmax(f(query key)) value.

    Attributes:
        scores: the MatMul of query [..., T', d] and key [..., d, T].
        softmax: the Softmax over the T keys.
        mix: the MatMul of the weights [..., T', T] and value [..., T, d].
        graph: where `mix` is, the main graph or a subgraph.
    """

    scores: ir.Node
    softmax: ir.Node
    mix: ir.Node
    graph: ir.Graph

    @property
    def name(self) -> str:
        """The mix node's."""
        return str(self.mix.name)

    @property
    def query(self) -> ir.Value:
        return input_of(self.scores, 0)

    @property
    def key(self) -> ir.Value:
        return input_of(self.scores, 1)

    @property
    def logits(self) -> ir.Value:
        """The softmax's input, [..., T', T]."""
        return input_of(self.softmax, 0)

    @property
    def weights(self) -> ir.Value:
        """What the values are mixed by, [..., T', T]; each row sums to 1, unless all of it is masked: it is NaN then,
        or zeros behind a guard."""
        return _before_identity(input_of(self.mix, 0))

    @property
    def value(self) -> ir.Value:
        return input_of(self.mix, 1)

    @property
    def is_masked(self) -> bool:
        """Whether there is a mask between scores and softmax, so that weights may be zero that stand for no token."""
        return _is_masked(self.logits)

    @property
    def rank(self) -> int:
        """How many axes the operands of `mix` have."""
        assert self.value.shape is not None
        return len(self.value.shape)


@dataclass(frozen=True)
class Refusal:
    """A Softmax that is not taken for attention, and why.

    Attributes:
        node: the Softmax.
        reason: in words.
        products: the MatMul before it and those behind it, where there are both and none is a linear layer.
    """

    node: ir.Node
    reason: str
    products: tuple[ir.Node, ...] = ()

    def __str__(self) -> str:
        return f"{self.node.name}: {self.reason}"


def attention_patterns(graph: ir.Graph) -> list[AttentionPattern]:
    """The attention patterns of a graph and of its subgraphs, in order."""
    return [found for found in _matches(graph) if isinstance(found, AttentionPattern)]


def refusals(graph: ir.Graph) -> list[Refusal]:
    """The other Softmax nodes of a graph and of its subgraphs, in order."""
    return [found for found in _matches(graph) if isinstance(found, Refusal)]


def _matches(graph: ir.Graph) -> Iterator[AttentionPattern | Refusal]:
    for node in graph:
        if is_operator(node, "Softmax"):
            yield _match(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _matches(attribute.as_graph())


def _match(softmax: ir.Node) -> AttentionPattern | Refusal:
    scores = _product(input_of(softmax, 0))
    products = _products(scores, softmax)
    reason = _refused_axis(softmax)
    if reason is not None:
        return Refusal(softmax, reason, products)
    mix = _consumer(softmax.outputs[0])
    if isinstance(mix, str):
        return Refusal(softmax, mix, products)
    if scores is None:
        return Refusal(softmax, "its input is no MatMul with only constant factors and masks behind it")
    for product, i, operand in ((scores, 0, "query"), (scores, 1, "key"), (mix, 1, "value")):
        if _is_weight(input_of(product, i)):
            return Refusal(softmax, f"the {operand} side of {product.name} is a constant: a linear layer, no attention")
    for product in (scores, mix):
        reason = _refused_operands(product)
        if reason is not None:
            return Refusal(softmax, reason, products)
    assert isinstance(mix.graph, ir.Graph)
    return AttentionPattern(scores, softmax, mix, mix.graph)


def _is_weight(value: ir.Value) -> bool:
    """Whether a product with it is a linear layer: with more axes, it is keys or values that are always the same."""
    return _is_constant(value) and value.shape is not None and len(value.shape) <= 2


def _refused_operands(product: ir.Node) -> str | None:
    left, right = (input_of(product, i).shape for i in (0, 1))
    if left is None or right is None:
        return f"an operand of {product.name} is of unknown rank"
    if len(left) != len(right):
        return f"the operands of {product.name} have {len(left)} and {len(right)} axes"
    if len(left) < 2:
        return f"the operands of {product.name} are vectors"
    for axis, (a, b) in enumerate(zip(left[:-2], right[:-2], strict=True)):
        # Of more than four axes those in the middle become one.
        merged = len(left) > 4 and axis > 0
        if a != b and (merged or (isinstance(a, int) and isinstance(b, int))):
            return f"{product.name} repeats an operand: {_shown(left)} times {_shown(right)}"
    return None


def _shown(shape: ir.Shape) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _refused_axis(softmax: ir.Node) -> str | None:
    axis = softmax.attributes.get_int("axis", -1)
    if axis == -1:
        return None
    shape = input_of(softmax, 0).shape or softmax.outputs[0].shape
    if shape is None:
        return f"axis {axis} of a tensor of unknown rank may not be the last"
    return None if axis == len(shape) - 1 else f"axis {axis} is not the last of {len(shape)}"


def _consumer(weights: ir.Value) -> ir.Node | str:
    """The MatMul that alone reads the softmax as its left operand, or why there is none."""
    while True:
        if weights.is_graph_output():
            return "its output leaves the graph"
        guard = _guard(weights)
        if guard is not None:
            weights = guard.outputs[0]
            continue
        uses = tuple(weights.uses())
        if len(uses) != 1:
            return f"its output has {len(uses)} consumers, not the product with the values alone"
        node, i = uses[0]
        if is_operator(node, "Identity"):
            weights = node.outputs[0]
        elif is_operator(node, "MatMul"):
            return node if i == 0 else f"{node.name} has it as the right operand"
        else:
            return f"its consumer {node.name} is {node.op_type}, not MatMul"


def _products(scores: ir.Node | None, softmax: ir.Node) -> tuple[ir.Node, ...]:
    """The MatMul before the softmax and those behind it, where there are both and none is a linear layer."""
    mixes = _mixes(softmax.outputs[0])
    found = () if scores is None or not mixes else (scores, *mixes)
    return () if any(_is_weight(input_of(product, i)) for product in found for i in (0, 1)) else found


def _mixes(weights: ir.Value) -> list[ir.Node]:
    """All MatMuls that read the softmax, whatever else does."""
    guard, found = _guard(weights), list[ir.Node]()
    for node, _ in weights.uses():
        if is_operator(node, "MatMul"):
            found.append(node)
        elif is_operator(node, "Identity") or node is guard:
            found += _mixes(node.outputs[0])
    return found


def _guard(weights: ir.Value) -> ir.Node | None:
    """Where(IsNaN(weights), 0, weights), if that and nothing else reads them."""
    readers = dict.fromkeys(node for node, _ in weights.uses())
    test, where = (next((node for node in readers if is_operator(node, op)), None) for op in ("IsNaN", "Where"))
    if len(readers) != 2 or test is None or where is None or input_of(where, 2) is not weights:
        return None
    zero = ir.convenience.get_const_tensor(input_of(where, 1))
    found = test.outputs[0]
    is_guard = input_of(where, 0) is found and len(tuple(found.uses())) == 1 and not found.is_graph_output()
    return where if is_guard and zero is not None and not zero.numpy().any() else None


def _before_identity(value: ir.Value) -> ir.Value:
    node = value.producer()
    return _before_identity(input_of(node, 0)) if node is not None and is_operator(node, "Identity") else value


def _product(value: ir.Value, depth: int = DEEPEST) -> ir.Node | None:
    """The MatMul that makes `value`, up to constant factors and masks; of two that are added, neither."""
    node = value.producer()
    if node is None or is_operator(node, "MatMul"):
        return node
    if not depth:
        return None
    if is_operator(node, "Where") and _is_constant(input_of(node, 1)) != _is_constant(input_of(node, 2)):
        return _product(input_of(node, 1 if _is_constant(input_of(node, 2)) else 2), depth - 1)
    if node.op_type in RESHAPES and node.domain == "" and _keeps_rows(node):
        return _product(input_of(node, 0), depth - 1)
    if is_operator(node, "Identity") or (is_operator(node, "Div") and _is_constant(input_of(node, 1))):
        return _product(input_of(node, 0), depth - 1)
    if is_operator(node, "Mul") and _is_constant(input_of(node, 0)) != _is_constant(input_of(node, 1)):
        return _product(input_of(node, 0 if _is_constant(input_of(node, 1)) else 1), depth - 1)
    if is_operator(node, "Add"):
        both = (_product(input_of(node, i), depth - 1) for i in (0, 1))
        found = [product for product in both if product is not None]
        return found[0] if len(found) == 1 else None
    return None


def _keeps_rows(node: ir.Node) -> bool:
    """Whether the last two axes are known to be the same before and behind it."""
    before, behind = input_of(node, 0).shape, node.outputs[0].shape
    if before is None or behind is None or min(len(before), len(behind)) < 2:
        return False
    return all(
        a == b and (isinstance(a, int) or a.value is not None) for a, b in zip(before[-2:], behind[-2:], strict=True)
    )


def _is_masked(logits: ir.Value, depth: int = DEEPEST) -> bool:
    """Whether there is an Add or a Where between the scores and the softmax."""
    node = logits.producer()
    if not depth or node is None or node.op_type not in ("Identity", "Div", "Mul", *MASKS, *RESHAPES):
        return False
    return node.op_type in MASKS or any(_is_masked(value, depth - 1) for value in node.inputs if value is not None)


def _is_constant(value: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(value) is not None
