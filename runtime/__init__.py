"""What a user deploys: bundles, sessions and the next-scale loop.

`__all__` is the public API, with `image_io` for pictures as files; modules that begin with an underscore may change at
any release. Imports numpy and onnxruntime only; `image_io` also pillow.
"""

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import (
    BundleError,
    Cancelled,
    ClassLabelError,
    NextscaleError,
    OutputError,
    RequestError,
)
from nextscale.runtime._manifest import GraphInfo, Manifest, ModelInfo, RequestInput
from nextscale.runtime._next_scale_loop import Generation, Generator, StageResult
from nextscale.runtime._request import RequestSettings
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._stage_runner import CancelFlag

__all__ = [
    "Bundle",
    "BundleError",
    "CancelFlag",
    "Cancelled",
    "ClassLabelError",
    "Generation",
    "Generator",
    "GraphInfo",
    "Manifest",
    "ModelInfo",
    "NextscaleError",
    "OutputError",
    "RequestError",
    "RequestInput",
    "RequestSettings",
    "SessionOptions",
    "StageResult",
]
