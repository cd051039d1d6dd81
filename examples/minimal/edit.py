import sys
from pathlib import Path

import numpy as np

from nextscale.runtime import Generator

bundle, label, out = sys.argv[1:]
generator = Generator(bundle)
[image] = generator.generate([label], seed=7).images  # or your own picture of that size
height, width, _ = image.shape
mask = np.zeros((height, width), bool)
mask[:, width // 2 :] = True  # the right half
[image] = generator.edit(image, mask, [label], seed=8).images
Path(out).write_bytes(b"P6\n%d %d\n255\n" % (width, height) + image.tobytes())
