from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_bundle import NUM_CLASSES
from infinity_bundle import SIZES, write_infinity_bundle

from nextscale.measure.bundle_contender import bundle_contender
from nextscale.measure.contender import Worker
from nextscale.measure.random_request import Subject, random_request
from nextscale.runtime import Bundle, SessionOptions


def test_classes_are_drawn_where_there_are_classes(fake_bundle: Path) -> None:
    """And nothing else is said: sampling is the default."""
    manifest = Bundle.open(fake_bundle).manifest
    found, again, other = (random_request(manifest, 30, seed, Subject(size=1)) for seed in (3, 3, 4))
    assert found.keys() == {"seed", "class_labels"}
    assert set(found["class_labels"]) <= set(range(NUM_CLASSES))
    np.testing.assert_array_equal(found["class_labels"], again["class_labels"])
    assert (found["class_labels"] != other["class_labels"]).any()


def test_texts_are_drawn_where_there_are_texts(fake_text_bundle: Path) -> None:
    manifest = Bundle.open(fake_text_bundle).manifest
    found = random_request(manifest, 2, 3, Subject(text_tokens=5))
    assert found.keys() == {"seed", "inputs"}
    assert found["inputs"]["text_features"].shape == (2, 5, 8)
    assert found["inputs"]["text_features"].std() > 0.5


def test_a_size_is_drawn_where_there_are_sizes(tmp_path: Path) -> None:
    """By the process that is measured, which tells its stages."""
    bundle = Bundle.open(write_infinity_bundle(tmp_path / "it"))
    for index, size in enumerate(SIZES):
        subject = Subject(index, text_tokens=5)
        assert random_request(bundle.manifest, 1, 0, subject)["inputs"]["size"] == index
        contender = bundle_contender("it", bundle, "streaming", SessionOptions(threads=1), subject=subject)
        with Worker(contender) as worker:
            assert len(worker.request(1, 0).stage_seconds) == size.num_stages
