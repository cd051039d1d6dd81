"""The constants of an integer convolution or matrix product: s8 weights and the bias in units of the int32 sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextscale.graph_passes.gptq import gptq
from nextscale.graph_passes.qparams import (
    WEIGHT_QMAX,
    WEIGHT_QMIN,
    ActivationQParams,
    QuantizedWeight,
)

# Half of int32: the other half is for the products, of which 2^30 / (255 * 127) = 33,000 fit.
BIAS_LIMIT = 2.0**30
WEIGHT_BITS = ACTIVATION_BITS = 8


@dataclass(frozen=True)
class IntegerKernel:
    """y ~ x.scale * weight.scale * (sum of (x_hat - x.zero_point) * weight.codes + bias), channel by channel."""

    weight: QuantizedWeight
    bias: NDArray[np.int32]


def integer_kernel(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    activation: ActivationQParams,
    reduce_range: bool = False,
    moments: NDArray[np.float32] | None = None,
) -> IntegerKernel:
    """Quantize a kernel float32 [out, in, ...] and its bias [out] for inputs with the parameters `activation`.

    A channel whose weights are so small beside its bias that the bias would leave int32 gets a coarser weight scale.

    Args:
        reduce_range: no pair of products leaves 16 bits; not with moments.
        moments: second moments [K, K] of what the kernel sees, K = in * ..., by which the errors of rounding make up
            for each other (`gptq`); None: each weight is rounded to nearest.
    """
    quantized = _reduced_range(weight) if reduce_range else QuantizedWeight.per_channel(weight, axis=0)
    step = np.float64(activation.scale[0])
    scale = np.maximum(quantized.scale, np.abs(bias) / (BIAS_LIMIT * step)).astype(np.float32)
    if moments is not None:
        rows = weight.reshape(len(weight), -1)
        codes = gptq(rows, moments, scale, WEIGHT_QMIN, WEIGHT_QMAX).reshape(weight.shape)
        quantized = QuantizedWeight(codes, scale, quantized.qmin)
    elif np.any(scale != quantized.scale):
        columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
        codes = np.clip(np.round(weight / columns), WEIGHT_QMIN, WEIGHT_QMAX).astype(np.int8)
        quantized = QuantizedWeight(codes, scale, quantized.qmin)
    return IntegerKernel(quantized, np.round(bias / (step * scale)).astype(np.int32))


def _reduced_range(weight: NDArray[np.float32]) -> QuantizedWeight:
    """The reduction of a channels-last convolution is over positions, and over the channels of each."""
    last = np.moveaxis(weight, 1, -1)
    quantized = QuantizedWeight.reduced_range(last, 0, WEIGHT_BITS, "max", ACTIVATION_BITS)
    return QuantizedWeight(np.ascontiguousarray(np.moveaxis(quantized.codes, -1, 1)), quantized.scale, quantized.qmin)
