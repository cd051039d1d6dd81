from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextscale.graph_passes.recipe import load_recipe, recipe_names
from nextscale.measure.kernel_rates import KernelRates
from nextscale.measure.machine_speed import MachineSpeed
from nextscale.measure.speed import Speed
from nextscale.measure.statistics import Interval
from nextscale.measure.time_split import PARTS, TimeSplit
from nextscale.paper._demo_agreement import DemoAgreement, demo_agreement
from nextscale.paper._table_c_page import markdown, with_interval
from nextscale.paper.table_c import (
    PAPER,
    ROWS,
    Case,
    Prediction,
    Row,
    TableBundle,
    TableC,
    cases,
    recommend,
    require_groups,
)
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import Machine
from nextscale.runtime._operators import Ops
from nextscale.runtime._session import SessionOptions


def speed(name: str, rate: float, batch: int = 1) -> Speed:
    interval = Interval(rate, 0.9 * rate, 1.1 * rate)
    return Speed(name, batch, interval, Interval(2, 1.8, 2.2), 1.0, 2.0, 10**9, {"engine": "7"}, (1 / rate,))


def together(processes: int, rate: float) -> MachineSpeed:
    return MachineSpeed(processes, 4 // processes, 1, Interval(rate, rate, rate))


def test_every_row_of_the_table_has_its_agreement() -> None:
    assert set(ROWS) <= set(recipe_names())
    found = {name: demo_agreement(name) for name in ROWS}
    assert all(found.values())
    assert found["fp32"] is not None
    assert (found["fp32"].kl, found["fp32"].top1) == (0, 1)
    assert demo_agreement("nothing") is None


def test_the_papers_ratios() -> None:
    ratios = [row.images_per_second / PAPER["fp32"].images_per_second for row in PAPER.values()]
    assert ratios == pytest.approx([1, 1.82, 1.45, 1.78, 1.42], abs=0.005)


def test_the_report_says_what_a_reader_must_know() -> None:
    split = TimeSplit(1.0, dict.fromkeys(PARTS, 0.2), (0.3, 0.7))
    row = Row(
        "brecq-w8a8", "BRECQ", "8/8", 1.82, (speed("brecq-w8a8", 0.8),), DemoAgreement(1.322, 0.015, 0.203), 10**8,
        split, 0.5, 0.4, (Prediction("cpu", 1, 0.3), Prediction("cpu", 16, 4.0)), ("weights rounded to nearest",),
    )  # fmt: skip
    table = TableC(
        model={"name": "var-d16", "weights": "random"},
        machine=Machine("A CPU", ("avx512_vnni",), 4, "Linux"),
        versions={"onnxruntime": "1.31.1"},
        settings={"threads": 0, "repetitions": 3, "warmup": 1, "order": "interleaved"},
        rates=KernelRates(1e11, 4e11),
        operations=10**12,
        rows=(row, Row("engine", "engine", "", None, (speed("engine", 0.4),))),
        failures={"other": "other: no package"},
        machine_speeds=(together(2, 1.0),),
        machine_recipe="default",
        recommendation="run it",
        agreement_provenance="measured there",
    )
    text = markdown(table)
    for line in (
        "- machine: A CPU, 4 logical CPUs, avx512_vnni, Linux",
        "- BRECQ: weights rounded to nearest",
        "- left out: other: no package",
        "- **BRECQ is far from full precision: KL 1.32 nats per token, top-1 20% on the demo model**",
        "| BRECQ | 8/8 | 0.800 ± 0.080 | 2.00 [1.80, 2.20] | 1.82 | 1.3220 | 20.3% | 1000 |",
        "| engine |  | 0.400 ± 0.040 | 2.00 [1.80, 2.20] |  |  |  | 1000 |",
        "- engine: engine 7",
        "| BRECQ | 20.0% | 20.0% | 20.0% | 20.0% | 20.0% | 0.5 | 40% |",
        "| BRECQ | 300 | 700 | 1000 |",
        "| 2 | 2 | 1 | 1.00 ± 0.00 |",
        "- run it",
        "## Prediction for the paper's Intel Xeon Gold 6226R",
        "| BRECQ | 0.3 | 4 | 0.2195 |",
    ):
        assert line in text.splitlines()
    assert "**Predicted, not measured**" in text
    json.dumps(table.to_json(), allow_nan=False)


def test_fused_graphs_have_a_row_beside_the_stock_ones(int8_bundle: Path, fp32_bundle: Path, ops_library: Path) -> None:
    items = [TableBundle(load_recipe(name), Bundle.open(path), ()) for name, path in
             (("fp32", fp32_bundle), ("default", int8_bundle))]  # fmt: skip

    def rows(ops: Ops) -> list[str]:
        options = SessionOptions(threads=1, ops=ops, ops_library=str(ops_library))
        return [Case(item, choice).name for item in items for choice in cases(item.bundle, options)]

    assert rows("stock") == ["fp32", "default"]
    assert rows("fused") == ["fp32", "default fused"]
    assert rows("auto") in (["fp32", "default", "default fused"], rows("stock"))  # stock where there is plain C++ alone


def test_several_processes_are_recommended_if_they_are_faster() -> None:
    speeds = [speed("default", 1.0), speed("default", 1.1, batch=8)]
    assert recommend("default", speeds, [], 4) == (
        "most images per second on this machine with default: 1 process of 4 threads, batch 8: 1.1 images/s, 1.10 "
        "times those of 1 process of 4 threads, batch 1 (1)"
    )
    assert "4 pinned processes of 1 thread, batch 1: 2 images/s" in recommend("default", speeds, [together(4, 2)], 4)
    # What was measured in the same minutes is compared.
    found = recommend("default", speeds, [together(1, 0.5), together(2, 0.8)], 4)
    assert found.endswith(
        "2 pinned processes of 2 threads, batch 1: 0.8 images/s, 1.60 times those of 1 pinned process of 4 threads, "
        "batch 1 (0.5)"
    )
    assert recommend("default", speeds[:1], [], 0).endswith("1 process of a thread for each core, batch 1: 1 images/s")


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        (Interval(0.9051, 0.8771, 0.9331), "0.905 ± 0.028"),
        (Interval(0.0121, 0.0119, 0.0123), "0.0121 ± 0.0002"),
        (Interval(12.34, 12.0, 12.68), "12.3 ± 0.3"),
        (Interval(150.0, 140.0, 160.0), "150 ± 10"),
        (Interval(1.0, float("nan"), float("nan")), "1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_intervals_are_shown_with_three_digits(interval: Interval, shown: str) -> None:
    assert with_interval(interval) == shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, None, None), "peers at once 0: expected at least 1"),
        ((None, 0.0, None), "half width 0.0: expected more than 0"),
        ((None, None, -1.0), "minutes -1.0: expected more than 0"),
        ((None, None, float("nan")), "minutes nan: expected more than 0"),
    ],
)
def test_what_ends_the_rounds_is_checked(settings: tuple[int | None, float | None, float | None], message: str) -> None:
    require_groups(None, None, None)
    with pytest.raises(NextscaleError, match=message):
        require_groups(*settings)
