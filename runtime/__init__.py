"""What a user deploys: bundles, sessions and the next-scale loop.

`__all__` is the public API; what is only in the modules below may change at any release. Imports numpy and onnxruntime
only; image_io also pillow.
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
from nextscale.runtime._manifest import ModelInfo
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
    "ModelInfo",
    "NextscaleError",
    "OutputError",
    "RequestError",
    "RequestSettings",
    "SessionOptions",
    "StageResult",
]
