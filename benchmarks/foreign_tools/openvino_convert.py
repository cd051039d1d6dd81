"""The float model in OpenVINO's form; runs in an environment of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import openvino


def main(model: str, out: str, **_: object) -> None:
    """Write model.xml and model.bin into a folder.

    Args:
        model: the float file.
        out: an existing folder.
    """
    openvino.save_model(openvino.Core().read_model(model), Path(out) / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
