"""The demo models of nextscale as files. Model cards and the licences of the weights come with the distribution.

Each file is an `importlib.resources` one: `importlib.resources.as_file` gives its path wherever the package lies.
"""

import json
from importlib.resources import files

_FOLDER = files(__name__)

# The photograph model: classes to photographs.
VAR = _FOLDER / "var.safetensors"  # the transformer, float16, with the official keys
VAE = _FOLDER / "vae.safetensors"  # the VQVAE, float16, with the official keys
# Moments of the features of the validation photographs: what FID-E measures against.
PHOTOGRAPH_STATISTICS = _FOLDER / "photograph_statistics.npz"
# The emoji model: prompts to emoji. A folder, which pip leaves unpacked, of three parts in float16:
# `infinity.safetensors`, `vae.safetensors` and `text/`.
EMOJI = _FOLDER / "emoji"


def class_names() -> list[str]:
    """The names of the photograph model's 150 classes, in the order of their labels."""
    names: list[str] = json.loads((_FOLDER / "class_names.json").read_text(encoding="utf-8"))
    return names
