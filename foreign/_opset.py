"""Bring the operators of ONNX's own domain to opset 21.

What changed between opsets 7 and 21 in a way that a node must follow is in `CHANGES`; all other new versions only
allow more. onnx's own converter isn't used: it writes each model through protobuf, with its weights, and puts Reshape
behind every Softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from nextscale.foreign._names import Names
from nextscale.graph_passes._graph_edit import add_initializer, input_of
from nextscale.runtime._errors import NextscaleError

OPSET, OLDEST = 21, 7
NEWEST = onnx.defs.onnx_opset_version()
# Opset 21 needs this version of the file format.
IR_VERSION = 10
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
# Types that came after opset 21.
NEWER_TYPES = ("FLOAT4E2M1", "FLOAT8E8M0", "INT2", "UINT2")


@dataclass(frozen=True)
class _Site:
    """A node that is to be converted.

    Attributes:
        node: the node.
        version: its opset.
        main: the main graph, which gets new initializers.
        names: the model's.
    """

    node: ir.Node
    version: int
    main: ir.Graph
    names: Names

    def refuse(self, reason: str) -> NextscaleError:
        return NextscaleError(
            f"{self.node.op_type} node {self.node.name} of opset {self.version} cannot become opset {OPSET}: {reason}"
        )

    def constant(self, what: str, array: np.ndarray) -> ir.Value:
        return add_initializer(self.main, self.names.value(f"{self.node.outputs[0].name}.{what}"), array)

    def add_input(self, i: int, value: ir.Value | None) -> None:
        if len(self.node.inputs) <= i:
            self.node.resize_inputs(i + 1)
        self.node.replace_input_with(i, value)

    def input_from(self, attribute: str, i: int) -> None:
        """Let int64s of an attribute be input i, if there are any."""
        found = self.node.attributes.pop(attribute, None)
        if found is not None and found.as_ints():
            self.add_input(i, self.constant(attribute, np.array(found.as_ints(), np.int64)))

    def like_input(self, what: str, number: float) -> ir.Value:
        """A scalar of the first input's type."""
        dtype = input_of(self.node, 0).dtype or ir.DataType.FLOAT
        return self.constant(what, np.array(number, dtype.numpy()))

    def before(self, op_type: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        """What a new node before this one puts out."""
        assert self.node.graph is not None
        made = self._make(op_type, inputs, attributes)
        self.node.graph.insert_before(self.node, made)
        return made.outputs[0]

    def behind(self, op_type: str, further: Sequence[ir.Value], **attributes: int) -> None:
        """Let what reads the node's output read a new node of it and `further`."""
        assert self.node.graph is not None
        old = self.node.outputs[0]
        made = self._make(op_type, [old, *further], attributes)
        self.node.graph.insert_after(self.node, made)
        (new,) = made.outputs
        new.name, old.name = old.name, new.name
        new.type, new.shape, old.shape = old.type, old.shape, None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        made.replace_input_with(0, old)

    def _make(self, op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, int]) -> ir.Node:
        made = ir.node(op_type, inputs, attributes, name=self.names.node(f"{self.node.name}.{op_type.lower()}"))
        made.outputs[0].name = self.names.value(f"{self.node.outputs[0].name}.{op_type.lower()}")
        return made


def opset_of(model: ir.Model) -> int:
    """The model's opset.

    Raises:
        NextscaleError: it is none that can be read.
    """
    versions = {model.opset_imports[domain] for domain in ("", "ai.onnx") if domain in model.opset_imports}
    if len(versions) != 1:
        raise NextscaleError(f"the model names {len(versions)} opsets of ONNX's own operators; expected one")
    (version,) = versions
    if not OLDEST <= version <= NEWEST:
        raise NextscaleError(f"the model is of opset {version}; expected {OLDEST} to {NEWEST}")
    return version


def convert_opset(model: ir.Model) -> list[str]:
    """Convert the model to opset 21, or leave a newer one that uses what opset 21 doesn't have.

    Constants must be initializers, and shapes inferred. Each Softmax waits for `convert_softmax`.

    Returns:
        A line on what became of the opset; none at opset 21.

    Raises:
        NextscaleError: a node has no equal in opset 21.
    """
    version = opset_of(model)
    nodes = [node for node in model.graph.all_nodes() if node.domain == ""]
    if version > OPSET:
        reason = next((reason for node in nodes if (reason := _newer(node, version))), None)
        if reason is not None:
            return [f"opset {version} stays: {reason}"]
        for node in nodes:
            _drop_newer_defaults(node, version)
    names = Names(model)
    for node in nodes if version < OPSET else ():
        site = _Site(node, version, model.graph, names)
        for op_types, below, change in CHANGES:
            if version < below and node.op_type in op_types:
                change(site)
        _check(site)
    model.opset_imports.pop("ai.onnx", None)
    model.opset_imports[""] = OPSET
    model.ir_version = max(model.ir_version, IR_VERSION)
    return [f"opset {version} to {OPSET}"] if version != OPSET else []


def convert_softmax(model: ir.Model, version: int) -> list[str]:
    """Give each Softmax, LogSoftmax and Hardmax of a model that was of opset `version` the meaning that it had there.

    Below opset 13 all axes from `axis` on are one. That the last axis is meant, which opset 13 has too, shows when the
    number of axes is known: so shapes must have been inferred anew, which old operators often stand in the way of.

    Returns:
        A line on each that is over several axes.
    """
    names = Names(model)
    nodes = [node for node in model.graph.all_nodes() if node.domain == "" and node.op_type in SOFTMAXES]
    lines = [_softmax(_Site(node, version, model.graph, names)) for node in nodes if version < 13]
    return [line for line in lines if line is not None]


def _check(site: _Site) -> None:
    """Refuse what opset 21 has not, unless it isn't ONNX's: ONNX Runtime has operators of its own in that domain."""
    schema, node = _schema(site.node.op_type, OPSET), site.node
    if schema is None or schema.deprecated:
        if _schema(node.op_type, site.version) is not None:
            raise site.refuse("the operator is gone")
        return
    unknown = sorted(set(node.attributes) - set(schema.attributes))
    if unknown:
        raise site.refuse(f"its attribute {unknown[0]} is gone")
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise site.refuse(f"{len(node.inputs)} inputs; expected {schema.min_input} to {schema.max_input}")


def _schema(op_type: str, version: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, version, "")
    except onnx.defs.SchemaError:
        return None


def _newer(node: ir.Node, version: int) -> str | None:
    """What of the node came after opset 21, if anything."""
    new, old = _schema(node.op_type, version), _schema(node.op_type, OPSET)
    if new is None or (old is not None and new.since_version == old.since_version):
        return None
    if old is None:
        return f"{node.op_type} {node.name} is newer than {OPSET}"
    for name, attribute in node.attributes.items():
        default = new.attributes[name].default_value if name in new.attributes else None
        if name not in old.attributes and ir.serde.serialize_attribute(attribute) != default:
            return f"{node.op_type} {node.name} has {name}, which is newer than {OPSET}"
    # The last window of a pool that rounds up, and the result for numbers out of range, are not what they were.
    if node.op_type in ("AveragePool", "MaxPool") and node.attributes.get_int("ceil_mode", 0) != 0:
        return f"{node.op_type} {node.name} rounds its shape up, which means something else in {OPSET}"
    if node.op_type in ("BitShift", "Mod") and version >= 28:
        return f"{node.op_type} {node.name} means something else in {OPSET}"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None and value.dtype.name in NEWER_TYPES:
            return f"{value.name} is {value.dtype.name.lower()}, which is newer than {OPSET}"
    for value, parameter in zip(node.inputs, old.inputs, strict=False):
        kind = value.type if value is not None else None
        if isinstance(kind, ir.TensorType) and f"tensor({kind.dtype.name.lower()})" not in parameter.types:
            return f"{node.op_type} {node.name} of {kind.dtype.name.lower()} is newer than {OPSET}"
    return None


def _drop_newer_defaults(node: ir.Node, version: int) -> None:
    """Drop attributes that opset 21 doesn't have; they say what is so without them."""
    schema = _schema(node.op_type, OPSET)
    if schema is not None and _schema(node.op_type, version) is not None:
        for name in set(node.attributes) - set(schema.attributes):
            del node.attributes[name]


def _softmax(site: _Site) -> str | None:
    """One node if all axes behind `axis` are of size 1, and Flatten, the node and Reshape otherwise."""
    node, x = site.node, input_of(site.node, 0)
    axis = node.attributes.get_int("axis", 1)
    shape = x.shape if x.shape is not None else node.outputs[0].shape
    if shape is not None:
        axis = axis + len(shape) if axis < 0 else axis
        if axis == len(shape) - 1:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
            return None
        if all(size == 1 for size in shape[axis + 1 :]) and axis < len(shape):
            node.attributes["axis"] = ir.AttrInt64("axis", axis)
            return None
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    sizes = site.before("Shape", [x])
    node.replace_input_with(0, site.before("Flatten", [x], axis=axis))
    site.behind("Reshape", [sizes], allowzero=1)
    known = "an unknown number of axes" if shape is None else f"{len(shape)} axes"
    return f"{node.op_type} {node.name} of opset {site.version} works on axes {axis} and later of {known} together"


def _axes(site: _Site) -> None:
    site.input_from("axes", 1)


def _split(site: _Site) -> None:
    site.input_from("split", 1)
    if len(site.node.inputs) == 1:
        site.node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(site.node.outputs))


def _clip(site: _Site) -> None:
    for i, bound in enumerate(("min", "max"), 1):
        found = site.node.attributes.pop(bound, None)
        if found is not None:
            site.add_input(i, site.like_input(bound, found.as_float()))


def _pad(site: _Site) -> None:
    site.input_from("pads", 1)
    value = site.node.attributes.pop("value", None)
    if value is not None and value.as_float() != 0:
        site.add_input(2, site.like_input("value", value.as_float()))


def _slice(site: _Site) -> None:
    for i, bound in enumerate(("starts", "ends", "axes"), 1):
        site.input_from(bound, i)


def _top_k(site: _Site) -> None:
    k = site.node.attributes.pop("k").as_int()
    site.add_input(1, site.constant("k", np.array([k], np.int64)))


def _dropout(site: _Site) -> None:
    node = site.node
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise site.refuse("its mask, which means something else now, is used")
    node.resize_outputs(1)
    ratio = node.attributes.pop("ratio", None)
    if ratio is not None:
        site.add_input(1, site.constant("ratio", np.array(ratio.as_float(), np.float32)))


def _batch_normalization(site: _Site) -> None:
    node = site.node
    spatial = node.attributes.pop("spatial", None)
    if spatial is not None and spatial.as_int() != 1:
        raise site.refuse("it has spatial=0; expected a mean for each channel")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise site.refuse("it is for training: more than its first output is used")
    node.resize_outputs(1)


def _upsample(site: _Site) -> None:
    scales = site.node.attributes.pop("scales", None)
    if scales is not None:
        site.add_input(1, site.constant("scales", np.array(scales.as_floats(), np.float32)))
    site.node.op_type = "Resize"
    _resize_from_corner(site, "floor")


def _resize_from_corner(site: _Site, nearest: str) -> None:
    node = site.node
    site.add_input(2, input_of(node, 1))
    site.add_input(1, None)
    node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
    if node.attributes.get_string("mode", "nearest") == "nearest":
        node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", nearest)


def _resize(site: _Site) -> None:
    """Where Resize of opset 10 shrinks, its nearest pixel in ONNX Runtime is the next higher, not the next lower."""
    shrinks = False
    if site.node.attributes.get_string("mode", "nearest") == "nearest":
        tensor = input_of(site.node, 1).const_value
        if tensor is None:
            raise site.refuse("its scales are computed at run time; expected constants")
        shrinks = bool((tensor.numpy() < 1).any())
        if shrinks and (tensor.numpy() > 1).any():
            raise site.refuse("it shrinks one axis and enlarges another")
    _resize_from_corner(site, "ceil" if shrinks else "floor")


def _resize_11(site: _Site) -> None:
    mode = site.node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode == "tf_half_pixel_for_nn":
        raise site.refuse(f"its coordinate_transformation_mode {mode} is gone")


def _scatter(site: _Site) -> None:
    site.node.op_type = "ScatterElements"


def _grid_sample(site: _Site) -> None:
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(site.node.attributes.get_string("mode", "bilinear"))
    if mode is not None:
        site.node.attributes["mode"] = ir.AttrString("mode", mode)


def _dft(site: _Site) -> None:
    axis = site.node.attributes.pop("axis", None)
    site.add_input(2, site.constant("axis", np.array(1 if axis is None else axis.as_int(), np.int64)))


def _roi_align(site: _Site) -> None:
    name = "coordinate_transformation_mode"
    site.node.attributes[name] = ir.AttrString(name, "output_half_pixel")


def _group_normalization(site: _Site) -> None:
    """Scale and bias [G], a number for each group, become [C], one for each channel."""
    node, shape = site.node, input_of(site.node, 0).shape
    groups, channels = node.attributes["num_groups"].as_int(), shape[1] if shape is not None else None
    if not isinstance(channels, int):
        raise site.refuse("its number of channels is unknown")
    for i in (1, 2):
        tall = site.before("Reshape", [input_of(node, i), site.constant(f"tall.{i}", np.array([groups, 1]))])
        wide = site.before("Expand", [tall, site.constant(f"wide.{i}", np.array([groups, channels // groups]))])
        flat = site.before("Reshape", [wide, site.constant(f"flat.{i}", np.array([-1]))])
        node.replace_input_with(i, flat)


def _scan(site: _Site) -> None:
    raise site.refuse("Scan of opset 8 has another meaning")


Change = Callable[[_Site], None]
# Operators, the first opset that has the new form, and what brings a node there; in order.
CHANGES: tuple[tuple[tuple[str, ...], int, Change], ...] = (
    (("Scan",), 9, _scan),
    (("Slice",), 10, _slice),
    (("TopK",), 10, _top_k),
    (("Resize",), 11, _resize),
    (("Upsample",), 10, _upsample),
    (("Resize",), 13, _resize_11),
    (("Clip",), 11, _clip),
    (("Pad",), 11, _pad),
    (("Scatter",), OPSET, _scatter),
    (("Dropout",), 12, _dropout),
    (("Squeeze", "Unsqueeze", "ReduceSum"), 13, _axes),
    (("BatchNormalization",), 14, _batch_normalization),
    (("RoiAlign",), 16, _roi_align),
    (("Split",), 18, _split),
    (tuple(f"Reduce{kind}" for kind in REDUCTIONS), 18, _axes),
    (("DFT",), 20, _dft),
    (("GridSample",), 20, _grid_sample),
    (("GroupNormalization",), 21, _group_normalization),
)
