"""nextscale: VAR (next-scale prediction) checkpoints to int8 ONNX bundles, and pictures from them on a plain CPU."""

from pkgutil import extend_path

# Python started in the repository's root finds this folder first; the subpackages are where they were installed.
__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
