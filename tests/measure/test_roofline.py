from __future__ import annotations

import pytest
from model_infos import VAR_D16, facts_of

from nextscale.graph_passes.recipe import load_recipe
from nextscale.measure.kernel_rates import KernelRates, kernel_rates
from nextscale.measure.roofline import CONVOLUTIONS, XEON_6226R, roofline_seconds
from nextscale.models.operations import linear_operations
from nextscale.runtime._session import SessionOptions

RATES = KernelRates(float32=1e9, int8=4e9)


@pytest.mark.parametrize(
    ("recipe", "floats"),
    [
        ("fp32", None),
        ("brecq-w8a8", set()),
        ("litevar-w8a8", {f"blocks.{i}.ffn.fc2" for i in range(16)}),
        ("default", {"word_embed"}),
    ],
)
def test_each_layer_has_the_rate_of_its_numbers(recipe: str, floats: set[str] | None) -> None:
    operations = linear_operations(facts_of(VAR_D16)) | {CONVOLUTIONS: 1000}
    expected = sum(
        count / (RATES.float32 if floats is None or name in floats else RATES.int8)
        for name, count in operations.items()
    )
    assert roofline_seconds(operations, load_recipe(recipe), RATES) == pytest.approx(expected)


def test_the_papers_cpu() -> None:
    one, all_cores = XEON_6226R.rates(1), XEON_6226R.rates(16)
    assert one.int8 == pytest.approx(2.9e9 * 256 * 0.8)
    assert all_cores.float32 == pytest.approx(16 * 2.9e9 * 64 * 0.8)


def test_rates_of_this_machine() -> None:
    rates = kernel_rates(SessionOptions(threads=1), repetitions=2)
    assert rates.float32 > 1e8
    assert rates.int8 > 1e8
    assert rates.mean_with(rates) == rates.best_with(rates) == rates
    assert KernelRates(1, 4).best_with(KernelRates(3, 2)) == KernelRates(3, 4)
