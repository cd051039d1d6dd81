"""What a user deploys: bundles, sessions and the next-scale loop.

`__all__` is the public API, with `image_io` for pictures as files; modules that begin with an underscore may change at
any release. Imports numpy and onnxruntime only, when a name is first used; `image_io` also pillow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nextscale.runtime._bundle import Bundle
    from nextscale.runtime._errors import (
        BundleError,
        Cancelled,
        ClassLabelError,
        NextscaleError,
        OutputError,
        RequestError,
    )
    from nextscale.runtime._interruptible import CancelFlag
    from nextscale.runtime._manifest import GraphInfo, Manifest, ModelInfo, RequestInput
    from nextscale.runtime._next_scale_loop import Generation, Generator, StageResult
    from nextscale.runtime._request import RequestSettings
    from nextscale.runtime._session import SessionOptions
    from nextscale.runtime._sizes import SizeInfo

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
    "SizeInfo",
    "StageResult",
]

# The program must be able to end before numpy and onnxruntime are imported, which take most of a start.
_NAMES = {
    "_bundle": ("Bundle",),
    "_errors": ("BundleError", "Cancelled", "ClassLabelError", "NextscaleError", "OutputError", "RequestError"),
    "_interruptible": ("CancelFlag",),
    "_manifest": ("GraphInfo", "Manifest", "ModelInfo", "RequestInput"),
    "_next_scale_loop": ("Generation", "Generator", "StageResult"),
    "_request": ("RequestSettings",),
    "_session": ("SessionOptions",),
    "_sizes": ("SizeInfo",),
}


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
