"""The driver: a recipe into a plan, a plan through the passes, graphs into a bundle with a certificate."""

from nextscale.compiler.build import build_bundle
from nextscale.compiler.learn import learn_bundle
from nextscale.compiler.options import BuildOptions, Progress

__all__ = [
    "BuildOptions",
    "Progress",
    "build",
    "build_bundle",
    "family",
    "fusion_certificate",
    "infinity_family",
    "learn",
    "learn_bundle",
    "observe_autoencoder",
    "options",
    "var_family",
    "write_bundle",
]
