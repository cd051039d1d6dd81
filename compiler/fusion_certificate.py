"""Did every integer layer get an integer kernel?  Read off the graph that ONNX Runtime made of ours.

ONNX Runtime silently runs a QDQ layer in float when a fusion does not match, several times slower. The certificate
lists each layer's quantized weight and the operator that consumes it after all optimizations.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnxruntime

from nextscale.graph_passes.linear_layers import CODES_SUFFIX, PACKED_SUFFIX
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions, first_line, new_session, session_settings

INTEGER_KERNELS = frozenset({"MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul"})


@dataclass(frozen=True)
class CertifiedLayer:
    """One quantized weight and the kernels that consume it in the optimized graph."""

    weight: str
    kernels: tuple[str, ...]

    @property
    def is_integer(self) -> bool:
        return bool(self.kernels) and INTEGER_KERNELS.issuperset(self.kernels)


@dataclass(frozen=True)
class FusionCertificate:
    """The layers of one graph, in the order of the optimized graph."""

    graph: str
    layers: tuple[CertifiedLayer, ...]

    def require_integer(self, layers: Collection[str] = ()) -> None:
        """Raise NextscaleError naming the first layers that fell back to float.

        Args:
            layers: names of layers that a pass was meant to make integer; each must have a quantized weight
                `{layer}.….codes` here.
        """
        names = [layer.weight.removeprefix("stage/").removeprefix("decoder/") for layer in self.layers]
        skipped = [layer for layer in layers if not any(name.startswith(f"{layer}.") for name in names)]
        fallen = [layer for layer in self.layers if not layer.is_integer]
        fallen += [CertifiedLayer(name, ("never quantized",)) for name in skipped]
        if fallen:
            total = len(self.layers) + len(skipped)
            shown = ", ".join(f"{layer.weight} -> {'+'.join(layer.kernels) or 'folded away'}" for layer in fallen[:3])
            raise NextscaleError(
                f"{self.graph}: {len(fallen)} of {total} integer layers fell back to float in onnxruntime "
                f"{onnxruntime.__version__} ({shown}); build with a release that the fusion tests cover"
            )

    def kernel_counts(self) -> dict[str, int]:
        """How many layers each kernel has."""
        return dict(Counter(kernel for layer in self.layers for kernel in dict.fromkeys(layer.kernels)))

    def by_layer(self) -> dict[str, str]:
        """The kernel of each quantized weight, for the manifest; one that multiplies with it twice is named once."""
        return {
            layer.weight.removesuffix(CODES_SUFFIX): "+".join(dict.fromkeys(layer.kernels)) for layer in self.layers
        }


def certify(path: Path, options: SessionOptions | None = None) -> FusionCertificate:
    """Optimize the graph file `path` as a session would and see what became of its quantized weights.

    Raises:
        NextscaleError: ONNX Runtime cannot load the graph, or the optimized one cannot be written beside it.
    """
    stored = [tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer]
    stored = [
        name.removesuffix(PACKED_SUFFIX) + CODES_SUFFIX if name.endswith(PACKED_SUFFIX) else name for name in stored
    ]
    intended = [name for name in stored if name.endswith(CODES_SUFFIX)]
    optimized = optimize(path, options)
    kernels: dict[str, list[str]] = {name: [] for name in intended}
    for node in all_nodes(optimized.graph):
        for name in node.input:
            if name in kernels:
                kernels[name].append(node.op_type)
    return FusionCertificate(path.name, tuple(CertifiedLayer(name, tuple(found)) for name, found in kernels.items()))


def optimize(path: Path, options: SessionOptions | None = None, library: Path | None = None) -> onnx.ModelProto:
    """What ONNX Runtime makes of the graph file `path` when it loads it, without the weights.

    Args:
        path: of the graph.
        options: threads and memory.
        library: of operators that the graph needs.
    Raises:
        NextscaleError: it cannot load the graph, or the optimized one cannot be written beside it.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # Nothing is multiplied: a copy of the weights in the kernels' order would be made for nothing.
        settings = session_settings(replace(options or SessionOptions(), prepacking=False))
        if library is not None:
            settings.register_custom_ops_library(str(library))
        settings.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        # Beside the graph, or models over 2 GB could not be written.
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            new_session(path, settings)
        except Exception as error:  # its exceptions have no common base below Exception
            raise NextscaleError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot optimize it: {first_line(error)}"
            ) from None
        return onnx.load(settings.optimized_model_filepath, load_external_data=False)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)
