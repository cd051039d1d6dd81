"""How long a model's linear layers and convolutions need at least, and what follows for another CPU.

The roofline is the operations of linear layers and convolutions, at the rate that ONNX Runtime's own matrix products
reach on the machine; what a bundle takes beyond it goes into attention, sampling, norms, copies and small shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nextscale.graph_passes.recipe import Recipe
from nextscale.measure.kernel_rates import KernelRates

CONVOLUTIONS = "convolutions"


@dataclass(frozen=True)
class Processor:
    """What a CPU could do at most: the assumptions behind a prediction.

    Attributes:
        name: as its maker calls it.
        cores: physical ones of a socket.
        hertz: what all cores are assumed to keep up.
        float32, int8: operations per core and cycle, a multiply-add being two.
        reached: the share of its peak that ONNX Runtime's matrix products are assumed to reach.
    """

    name: str
    cores: int
    hertz: float
    float32: int
    int8: int
    reached: float

    def rates(self, cores: int) -> KernelRates:
        """Of matrix products on that many cores."""
        return KernelRates(*(cores * self.hertz * peak * self.reached for peak in (self.float32, self.int8)))


# Cascade Lake with two 512-bit units a core: 2 x 16 float32 or 2 x 64 u8 x s8 (AVX512-VNNI) multiply-adds a cycle. The
# base clock is for light code; with AVX-512 on all cores the real one may be lower, alone on few cores it is higher.
XEON_6226R = Processor("Intel Xeon Gold 6226R", cores=16, hertz=2.9e9, float32=64, int8=256, reached=0.8)


def roofline_seconds(operations: Mapping[str, int], recipe: Recipe, rates: KernelRates) -> float:
    """Seconds per image, each layer at the rate of the numbers that `recipe` computes it with.

    Args:
        operations: of an image, by linear layer as a recipe names it, and of CONVOLUTIONS, which are float32 where
            the recipe leaves the decoder in float; narrow ones, which read two bytes, are counted once.
        recipe: of the bundle.
        rates: of the machine.
    """

    def rate(layer: str) -> float:
        choice = recipe.decoder.precision if layer == CONVOLUTIONS else recipe.layer_choice(layer)
        return rates.float32 if recipe.precision == "fp32" or choice == "float" else rates.int8

    return sum(count / rate(layer) for layer, count in operations.items())
