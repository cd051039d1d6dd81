"""onnxscript's GraphBuilder, which makes a graph's nodes, at less cost for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx
import onnxscript


class GraphBuilder(onnxscript.GraphBuilder):
    """One whose callers give inputs by position and attributes by name, as all do here.

    onnxscript tells them apart by a signature, which it makes of the operator's schema for each node again.
    """

    def _partition_inputs_attributes(
        self, schema: onnx.defs.OpSchema | None, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The attributes in the schema's order, which becomes that of the node.

        Raises:
            TypeError: the operator has no such attribute.
        """
        if schema is None or not kwargs:
            return args, kwargs
        names = _attributes(schema.domain, schema.name, schema.since_version)
        unknown = kwargs.keys() - names
        if unknown:
            raise TypeError(f"{schema.name} has no attributes {sorted(unknown)}; expected some of {sorted(names)}")
        return args, {name: kwargs[name] for name in names if name in kwargs}


@cache
def _attributes(domain: str, operator: str, since_version: int) -> tuple[str, ...]:
    """The names of an operator's attributes in its schema's order."""
    return tuple(onnx.defs.get_schema(operator, since_version, domain).attributes)
