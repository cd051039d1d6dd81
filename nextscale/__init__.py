"""nextscale: VAR (next-scale prediction) checkpoints to int8 ONNX bundles, and pictures from them on a plain CPU."""

import os

# ONNX Runtime 1.29 and later looks at it once, when it is imported: all of this package comes here first.
os.environ["ORT_DISABLE_TELEMETRY"] = os.environ.get("ORT_DISABLE_TELEMETRY") or "1"

if not os.path.isdir(os.path.join(__path__[0], "runtime")):
    # Python started in the repository's root finds this folder first; the subpackages are where they were installed.
    from pkgutil import extend_path

    __path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`nextscale.quantize`, which needs what the extra `export` installs, once it is asked for."""
    if name == "quantize":
        from importlib import import_module

        return import_module("nextscale.foreign").quantize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
