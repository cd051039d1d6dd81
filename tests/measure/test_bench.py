import json
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import write_fake_bundle

from nextscale.measure import bench as bench_module
from nextscale.measure.bench import bench, time_batch
from nextscale.runtime import Bundle, Generator, NextscaleError, SessionOptions


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bench")
    return [Bundle.open(write_fake_bundle(folder / f"seed{seed}", seed)) for seed in (0, 1)]


def test_report_has_every_bundle_form_and_batch(bundles: list[Bundle]) -> None:
    report = bench(bundles, batches=[1, 3], repetitions=3, footprint=False)
    cases = [(item.name, item.form, item.batch) for item in report.measurements]
    assert cases == [
        (name, form, batch) for batch in (1, 3) for name in ("fake-0", "fake-1") for form in ("generate", "streaming")
    ]
    for item in report.measurements:
        assert len(item.samples) == 3
        assert item.image_seconds.mean == pytest.approx(sum(item.samples) / 3 / item.batch)
        assert item.images_per_second.mean == pytest.approx(1 / item.image_seconds.mean)
        if item.form == "streaming":
            assert item.decoder_seconds is not None
            parts = sum(stage.mean for stage in item.stage_seconds) + item.decoder_seconds.mean
            assert parts == pytest.approx(item.image_seconds.mean)
        if item.name == "fake-0":
            assert item.speedup.mean == 1
    assert report.settings["order"] == "interleaved"
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["machine"]["logical_cpus"] >= 1


def test_rounds_are_interleaved_after_the_warm_up(bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def record(generator: Generator, form: str, batch: int, seed: int) -> bench_module.Run:
        order.append(generator.bundle.manifest.name)
        return time_batch(generator, form, batch, seed)

    monkeypatch.setattr(bench_module, "time_batch", record)
    report = bench(bundles, forms=["generate"], repetitions=2, warmup=1, footprint=False)
    assert order == ["fake-0", "fake-1"] * 3
    assert len(report.measurements[0].samples) == 2


def test_footprint_is_that_of_a_fresh_process(bundles: list[Bundle]) -> None:
    ballast = bytearray(300_000_000)
    ballast[::4096] = b"1" * len(ballast[::4096])  # this process's peak must not count
    report = bench(bundles[:1], forms=["generate"], repetitions=2, options=SessionOptions(threads=1))
    footprint = report.measurements[0].footprint
    assert footprint is not None
    assert 20e6 < footprint.peak_bytes < 250e6
    assert footprint.load_seconds > 0
    assert footprint.first_seconds > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": []}, "batch sizes"),
        ({"batches": [0]}, "batch sizes"),
        ({"forms": ["other"]}, "forms"),
        ({"repetitions": 1}, "repetitions 1: expected at least 2"),
        ({"warmup": -1}, "warmup -1"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(bundles: list[Bundle], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        bench(bundles, footprint=False, **settings)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(NextscaleError, match="no bundle"):
        bench([])


def test_a_worker_that_fails_is_one_line(damaged: Path) -> None:
    bundle = Bundle.open(damaged)
    (damaged / "generate.onnx").unlink()
    with pytest.raises(NextscaleError, match=r"measuring memory .* failed: .*generate\.onnx: the file is missing"):
        bench([bundle], forms=["generate"], repetitions=2)
