"""ONNX Runtime with OpenVINO's provider as a peer; runs in an environment of its own.

The provider comes in two packages: onnxruntime-ep-openvino, a plug-in that offers itself on Intel's processors alone,
and onnxruntime-openvino, a build of ONNX Runtime that takes any, with an older OpenVINO.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from nextscale.measure.peers.onnxruntime_engine import OnnxRuntimeEngine
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._session import SessionOptions, session_settings

PLUG_IN, BUILD = "onnxruntime-ep-openvino", "onnxruntime-openvino"
_PROVIDER = "OpenVINOExecutionProvider"


class OnnxRuntimeOpenVinoEngine(OnnxRuntimeEngine):
    """The provider takes whole graphs, or a session is refused.

    Args:
        graphs: the files of condition, step and decoder (`exported_graphs`).
        threads: 0 lets OpenVINO choose.
        precision: of what is not quantized: "f32", "bf16", or "auto" for bf16 where the CPU has it.
    Raises:
        RuntimeError: there is no provider for this CPU, or no bfloat16.
    """

    def __init__(self, graphs: Sequence[Path], threads: int, precision: str) -> None:
        has_bf16 = not {"avx512_bf16", "amx_bf16"}.isdisjoint(describe_machine().isa)
        if precision == "bf16" and not has_bf16:
            raise RuntimeError("this CPU has no bfloat16 instructions, so OpenVINO would compute in float32")
        if precision == "auto":
            precision = "bf16" if has_bf16 else "f32"
        self._devices = _plug_in_devices()
        if not self._devices and _PROVIDER not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this ONNX Runtime has no OpenVINO provider: {PLUG_IN} and {BUILD} are missing")
        # OpenVINO computes wrong logits with its generated kernels: `openvino_engine` has more.
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": precision,
            "SNIPPETS_MODE": "DISABLE",
        }
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        self._config = json.dumps({"CPU": config})
        super().__init__(graphs, threads)
        package = PLUG_IN if self._devices else BUILD
        self.versions |= {package: version(package)}

    def _session(self, path: Path, threads: int) -> onnxruntime.InferenceSession:
        settings = session_settings(SessionOptions(threads=threads))
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options = {"load_config": self._config}
        if self._devices:
            settings.add_provider_for_devices(self._devices, options)
            return onnxruntime.InferenceSession(path, settings)
        return onnxruntime.InferenceSession(path, settings, providers=[(_PROVIDER, {"device_type": "CPU"} | options)])


def _plug_in_devices() -> list[onnxruntime.OrtEpDevice]:
    """This CPU as the plug-in offers it; none where the plug-in is not installed.

    Raises:
        RuntimeError: it is installed and does not offer this CPU.
    """
    if importlib.util.find_spec("onnxruntime_ep_openvino") is None:
        return []
    import onnxruntime_ep_openvino

    onnxruntime.register_execution_provider_library(PLUG_IN, onnxruntime_ep_openvino.get_library_path())
    cpu = onnxruntime.OrtHardwareDeviceType.CPU
    found = [item for item in onnxruntime.get_ep_devices() if item.ep_name == _PROVIDER and item.device.type == cpu]
    if not found:
        raise RuntimeError(
            f"{PLUG_IN} {version(PLUG_IN)} offers no device on {describe_machine().cpu}: it takes Intel's processors "
            f"alone; {BUILD} takes others"
        )
    return found[:1]
