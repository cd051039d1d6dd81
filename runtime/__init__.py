"""What a user deploys: bundles, sessions and the next-scale loop.

Imports numpy and onnxruntime only; image_io also pillow.
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
from nextscale.runtime.next_scale_loop import Generation, Generator, StageResult
from nextscale.runtime.session import SessionOptions

__all__ = [
    "Bundle",
    "BundleError",
    "Cancelled",
    "ClassLabelError",
    "Generation",
    "Generator",
    "NextscaleError",
    "OutputError",
    "RequestError",
    "SessionOptions",
    "StageResult",
]
