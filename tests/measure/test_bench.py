import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import write_fake_bundle

from nextscale.measure.bench import bench
from nextscale.runtime import Bundle, NextscaleError


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bench")
    return [Bundle.open(write_fake_bundle(folder / f"seed{seed}", seed)) for seed in (0, 1)]


def test_report_has_every_bundle_form_and_batch(bundles: list[Bundle]) -> None:
    report = bench(bundles, batches=[1, 3], repetitions=3, warmup=0)
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
        footprint = item.footprint
        assert footprint is not None
        assert 20e6 < footprint.peak_bytes < 250e6
        assert footprint.load_seconds > 0
        assert footprint.first_seconds in item.samples  # without a warm-up it counts
    assert report.settings["order"].startswith("interleaved")
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["machine"]["logical_cpus"] >= 1


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
        bench(bundles, **settings)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(NextscaleError, match="no bundle"):
        bench([])


def test_a_bundle_that_fails_is_one_line(damaged: Path) -> None:
    bundle = Bundle.open(damaged)
    (damaged / "generate.onnx").unlink()
    with pytest.raises(NextscaleError, match=r"generate\): .*generate\.onnx: the file is missing"):
        bench([bundle], forms=["generate"], repetitions=2)


def test_a_bundle_may_be_measured_against_itself(bundles: list[Bundle]) -> None:
    first, second = bench([bundles[0]] * 2, forms=["generate"], repetitions=2).measurements
    assert first.bundle == second.bundle
    assert second.speedup.mean == pytest.approx(math.sqrt(math.prod(first.samples) / math.prod(second.samples)))
