"""What a user deploys: bundles, sessions and the next-scale loop.

`__all__` is the public API; what is only in the modules below may change at any release. Imports numpy and onnxruntime
only; image_io also pillow.
"""

from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import (
    BundleError,
    Cancelled,
    ClassLabelError,
    NextscaleError,
    OutputError,
    RequestError,
)
from nextscale.runtime.manifest import ModelInfo
from nextscale.runtime.next_scale_loop import Generation, Generator, StageResult
from nextscale.runtime.request import RequestSettings
from nextscale.runtime.session import SessionOptions
from nextscale.runtime.stage_runner import CancelFlag

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
