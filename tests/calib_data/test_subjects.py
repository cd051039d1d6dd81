"""What images are of: batches of one size, the settings of their requests, and where tokens are sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_sizes_bundle import LENGTHS

from nextscale.calib_data.subjects import Subjects
from nextscale.runtime import Bundle

TEXTS = tuple(np.full((length, 8), length, np.float32) for length in (2, 1, 3, 2))


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_neighbours_of_one_size_and_all_images_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    subjects = Subjects(rng.integers(0, 3, rng.integers(1, 12)))
    most = int(rng.integers(1, 5))
    batches = list(subjects.batches(most))
    assert [i for batch in batches for i in range(batch.start, batch.stop)] == list(range(len(subjects))), seed
    for batch, after in zip(batches, [*batches[1:], None], strict=True):
        sizes = subjects.sizes[batch]
        assert len(set(sizes)) == 1
        assert 1 <= len(sizes) <= most
        # A batch is as large as it can be.
        assert after is None or len(sizes) == most or subjects.sizes[after.start] != sizes[0], seed


def test_images_of_one_size_are_divided_as_ever() -> None:
    subjects = Subjects.of_classes(np.array([3, 1, 4, 1, 5]))
    assert list(subjects.batches(2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_a_part_has_its_own_labels_and_texts() -> None:
    labels = Subjects.of_classes(np.array([3, 1, 4]))[1:]
    assert labels.class_labels is not None
    assert (labels.class_labels.tolist(), labels.texts, len(labels)) == ([1, 4], None, 2)
    texts = Subjects(np.array([0, 2, 2, 1]), texts=TEXTS)[1:3]
    assert (texts.class_labels, texts.sizes.tolist(), texts.texts) == (None, [2, 2], TEXTS[1:3])


def test_settings_name_the_bundles_inputs(fake_sizes_bundle: Path, fake_bundle: Path) -> None:
    of_texts = Subjects(np.array([2, 2]), texts=TEXTS[:2]).settings(Bundle.open(fake_sizes_bundle).manifest)
    assert of_texts == {"class_labels": None, "inputs": {"text_features": list(TEXTS[:2]), "size": 2}}
    of_classes = Subjects.of_classes(np.array([1])).settings(Bundle.open(fake_bundle).manifest)
    assert list(of_classes) == ["class_labels"]


def test_sampled_tokens_have_the_length_of_each_size(fake_sizes_bundle: Path) -> None:
    manifest = Bundle.open(fake_sizes_bundle).manifest
    rows = Subjects(np.array([0, 2, 1]), texts=TEXTS[:3]).sampled(manifest)
    assert [row.shape for row in rows] == [(LENGTHS[size], 2) for size in (0, 2, 1)]
    assert all((row == -1).all() for row in rows)
    assert np.shape(Subjects(np.array([1, 1]), texts=TEXTS[:2]).sampled(manifest)) == (2, LENGTHS[1], 2)


def test_a_digest_tells_sizes_classes_and_texts_apart() -> None:
    sizes, one = np.array([0, 1]), np.array([0, 0])
    kinds = [
        Subjects(one), Subjects(sizes), Subjects(one, np.array([0, 0])), Subjects(one, np.array([0, 1])),
        Subjects(one, texts=TEXTS[:2]), Subjects(one, texts=TEXTS[1:3]), Subjects(one, texts=(TEXTS[1], TEXTS[0])),
    ]  # fmt: skip
    assert len({subjects.digest() for subjects in kinds}) == len(kinds)
    assert kinds[3].digest() == Subjects(one, np.array([0, 1])).digest()
