import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import that would start it
import onnxruntime


def uniforms(seed, image, length):
    """The numbers that decide an image of a seed, as in every language: Philox4x32-10 (docs/bundle.md, Sampling)."""
    low = 2**32 - 1
    counter = np.zeros((4, (length + 3) // 4), np.uint64)
    counter[0], counter[1], counter[2] = np.arange(counter.shape[1]), image & low, image >> 32
    key = [seed & low, seed >> 32]
    for _ in range(10):
        a, b = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = np.stack([(b >> 32) ^ counter[1] ^ key[0], b & low, (a >> 32) ^ counter[3] ^ key[1], a & low])
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return (counter.T.reshape(-1)[:length] >> 8).astype(np.float32) / np.float32(2**24)


bundle, label, out = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
inputs = {item["name"]: item for item in manifest["request"]}
length = inputs["uniforms"]["shape"][1]
session = onnxruntime.InferenceSession(bundle / "generate.onnx", providers=["CPUExecutionProvider"])
request = {
    "class_labels": np.array([label], np.int64),
    "uniforms": uniforms(7, 0, length)[None],
    "forced_tokens": np.full((1, length), -1, np.int64),
    **{name: np.array(item["default"], item["dtype"]) for name, item in inputs.items() if item["kind"] == "scalar"},
}
if "smooth_uniforms" in inputs:
    request["smooth_uniforms"] = np.zeros((1, 0, inputs["smooth_uniforms"]["shape"][2]), np.float32)
images, token_maps = session.run(["images", "token_maps"], request)
height, width = images.shape[1:3]
Path(out).write_bytes(b"P6\n%d %d\n255\n" % (width, height) + images[0].tobytes())
