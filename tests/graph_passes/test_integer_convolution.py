"""The integers of a kernel, and that they mean the kernel's numbers."""

import numpy as np

from nextscale.graph_passes._integer_convolution import integer_kernel
from nextscale.graph_passes.qparams import PAIR_LIMIT, ActivationQParams, Range, largest_pair_sum


def activation(low, high):
    return ActivationQParams.from_range(Range(np.array([low], np.float32), np.array([high], np.float32)))


def test_weights_and_bias_are_within_half_a_step():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 4, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    x = activation(-1, 3)
    kernel = integer_kernel(weight, bias, x)
    step = kernel.weight.scale.reshape(-1, 1, 1, 1)
    assert kernel.weight.codes.dtype == np.int8
    assert kernel.bias.dtype == np.int32
    assert np.all(np.abs(kernel.weight.codes * step - weight) <= 0.5001 * step)
    bias_step = kernel.weight.scale * x.scale[0]
    assert np.all(np.abs(kernel.bias * bias_step - bias) <= 0.5001 * bias_step)


def test_a_bias_beyond_int32_coarsens_its_channel_only():
    weight = np.array([[[[1e-9]]], [[[1.0]]], [[[0.0]]]], np.float32)
    bias = np.array([-1, 1, 2], np.float32)
    x = activation(0, 1)
    kernel = integer_kernel(weight, bias, x)
    assert kernel.weight.codes[1, 0, 0, 0] == 127
    np.testing.assert_allclose(kernel.bias * kernel.weight.scale * x.scale[0], bias, rtol=1e-4)


def test_an_input_that_is_always_zero_keeps_the_bias():
    bias = np.array([0.5], np.float32)
    x = activation(0, 0)
    kernel = integer_kernel(np.ones((1, 1, 1, 1), np.float32), bias, x)
    step = kernel.weight.scale * x.scale[0]
    assert np.all(np.abs(kernel.bias * step - bias) <= 0.5001 * step)


def test_a_reduced_range_keeps_pairs_of_channels_within_16_bits():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((7, 5, 3, 3)).astype(np.float32)
    bias, x = rng.standard_normal(7).astype(np.float32), activation(-1, 3)
    full, reduced = (integer_kernel(weight, bias, x, reduce_range) for reduce_range in (False, True))
    over_positions = [np.moveaxis(k.weight.codes.astype(int), 1, -1).reshape(7, -1) for k in (full, reduced)]
    assert 255 * largest_pair_sum(over_positions[0]).max() > PAIR_LIMIT
    assert 255 * largest_pair_sum(over_positions[1]).max() <= PAIR_LIMIT
    step = reduced.weight.scale.reshape(-1, 1, 1, 1)
    assert np.all(np.abs(reduced.weight.codes * step - weight) <= 0.5001 * step)
