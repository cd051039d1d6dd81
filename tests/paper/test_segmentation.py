"""Segmentations from queries, and mIoU and PQ, against examples worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nextscale.paper._segmentation_scores import VOID, ClassOverlaps, PanopticQuality
from nextscale.paper.segmentation import Queries, Segments, instances, panoptic_segments, semantic_map
from tests.goldens.panoptic_pictures import PARITY, disturbed, random_segments

CAT, DOG, SKY = range(3)


def queries(probabilities: list[list[float]], masks: list[list[list[float]]]) -> Queries:
    """Of probabilities of each class and of no object, and of each pixel: their logits."""
    p, m = np.array(probabilities), np.array(masks)
    return Queries(np.log(p).astype(np.float32), np.log(m / (1 - m)).astype(np.float32))


def segments(ids: list[list[int]], *classes: int) -> Segments:
    return Segments(np.array(ids), np.array(classes, np.int64))


def test_the_class_of_a_pixel_has_the_most_votes() -> None:
    """Left: cat .9 x .6 = .54 against dog .8 x .3 = .24, right: .9 x .2 = .18 against .8 x .4 = .32. In the middle two
    queries of sky have .4 x .9 + .5 x .8 = .76 against cat's .9 x .8 = .72."""
    found = semantic_map(
        queries(
            [[0.9, 0.02, 0.03, 0.05], [0.05, 0.8, 0.05, 0.1], [0.05, 0.05, 0.4, 0.5], [0.01, 0.01, 0.5, 0.48]],
            [[[0.6, 0.8, 0.2]], [[0.3, 0.1, 0.4]], [[0.01, 0.9, 0.01]], [[0.01, 0.8, 0.01]]],
        )
    )
    assert found.tolist() == [[CAT, SKY, DOG]]


def test_segments_of_things_and_of_stuff() -> None:
    """Two cats stay two, two skies are one, the unsure dog and the query of no object are none."""
    sure = [
        [0.95, 0.02, 0.02, 0.01],
        [0.9, 0.05, 0.03, 0.02],
        [0.02, 0.02, 0.95, 0.01],
        [0.02, 0.02, 0.9, 0.06],
        [0.1, 0.7, 0.1, 0.1],
        [0.03, 0.03, 0.04, 0.9],
    ]
    masks = np.full((6, 1, 6), 0.01)
    for query, pixel in enumerate((0, 1, 2, 3, 4, 5)):
        masks[query, 0, pixel] = 0.99
    found = panoptic_segments(queries(sure, masks.tolist()), {CAT, DOG})
    assert found.ids.tolist() == [[1, 2, 3, 3, 0, 0]]
    assert found.classes.tolist() == [CAT, CAT, SKY]
    looser = panoptic_segments(queries(sure, masks.tolist()), {CAT, DOG}, score=0.5)
    assert looser.ids.tolist() == [[1, 2, 3, 3, 4, 0]]


def test_what_is_mostly_hidden_is_no_segment() -> None:
    """The second query's mask has four pixels, of which the first, which is surer, takes two: half is left."""
    given = queries(
        [[0.98, 0.01, 0.005, 0.005], [0.01, 0.9, 0.04, 0.05]],
        [[[0.9, 0.9, 0.1, 0.1]], [[0.9, 0.9, 0.9, 0.9]]],
    )
    assert panoptic_segments(given, {CAT, DOG}).ids.tolist() == [[1, 1, 0, 0]]
    assert panoptic_segments(given, {CAT, DOG}, overlap=0.5).ids.tolist() == [[1, 1, 2, 2]]


def test_a_pixel_below_a_half_is_in_no_segment() -> None:
    given = queries([[0.97, 0.01, 0.01, 0.01]], [[[0.9, 0.4]]])
    assert panoptic_segments(given, {CAT}).ids.tolist() == [[1, 0]]
    nobody = panoptic_segments(queries([[0.1, 0.1, 0.1, 0.7]], [[[0.9, 0.4]]]), {CAT})
    assert (nobody.ids.tolist(), nobody.classes.tolist()) == ([[0, 0]], [])


def test_instances_are_scored_by_their_masks() -> None:
    """Cat: .6 x (.9 + .7) / 2 = .48; dog of the same query: .3 x .8 = .24; sky is no thing; the second query's dog has
    .5 x .6 = .3. An empty mask has a score of 0."""
    given = queries(
        [[0.6, 0.3, 0.05, 0.05], [0.05, 0.5, 0.4, 0.05], [0.2, 0.1, 0.1, 0.6]],
        [[[0.9, 0.7, 0.1]], [[0.1, 0.1, 0.6]], [[0.1, 0.1, 0.1]]],
    )
    found = instances(given, {CAT, DOG}, most=5)
    assert found.classes.tolist() == [CAT, DOG, DOG, CAT]
    assert found.scores.tolist() == pytest.approx([0.48, 0.3, 0.24, 0.0], abs=1e-6)
    assert found.masks[:, 0].tolist() == [[True, True, False], [False, False, True], [True, True, False], [False] * 3]


@pytest.mark.parametrize(("size", "part"), [((7, 9), (1, 1)), ((2, 3), (1, 1)), ((6, 6), (0.5, 0.75))])
def test_masks_are_resized_as_torch_does(size: tuple[int, int], part: tuple[float, float]) -> None:
    """Of a part, the picture's pixels lie as if all of it had been made larger, and the rest cut off."""
    masks = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    found = Queries(np.zeros((2, 2), np.float32), masks).resized(size, part).masks
    whole = tuple(round(side / share) for side, share in zip(size, part, strict=True))
    expected = torch.nn.functional.interpolate(torch.from_numpy(masks)[None], whole, mode="bilinear")[0].numpy()
    np.testing.assert_allclose(found, expected[:, : size[0], : size[1]], atol=1e-6)


def test_miou_of_two_pictures() -> None:
    """Cat: 3 in common of 5; sky: 2 of 3; dog was not expected, and one void pixel does not count."""
    overlaps = ClassOverlaps(3)
    overlaps.add(np.array([[CAT, CAT, SKY, VOID]]), np.array([[CAT, DOG, SKY, DOG]]))
    overlaps.add(np.array([[CAT, CAT, SKY, SKY]]), np.array([[CAT, CAT, SKY, CAT]]))
    assert overlaps.miou == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert ClassOverlaps(3).miou is None


def test_pq_of_matches_and_of_what_is_alone() -> None:
    """A cat of 4 pixels found as 3 of them, 3/4; another cat found as a dog: one cat and one dog alone.
    Cat: .75 / (1 + 1/2) = 1/2; dog: 0; the sky is found whole: 1."""
    quality = PanopticQuality(3)
    quality.add(
        segments([[1, 1, 1, 1, 2, 2, 3, 3, 3]], CAT, CAT, SKY), segments([[1, 1, 1, 3, 2, 2, 3, 3, 3]], CAT, DOG, SKY)
    )
    # The pixel that the sky took makes its share 3/4, too.
    assert quality.pq == pytest.approx((0.75 / 1.5 + 0 + 0.75) / 3)


def test_half_in_common_is_no_match() -> None:
    quality = PanopticQuality(3)
    quality.add(segments([[1, 1, 1, 2]], CAT, SKY), segments([[1, 1, 2, 2]], CAT, SKY))
    assert quality.pq == pytest.approx((2 / 3 + 0) / 2)


def test_pixels_that_nobody_annotated() -> None:
    """They are no part of a union, and a segment that is mostly there is not counted."""
    expected, found = segments([[1, 1, 0, 0, 0]], CAT), segments([[1, 1, 1, 2, 2]], CAT, DOG)
    quality, strict = PanopticQuality(3), PanopticQuality(3, unlabelled=False)
    quality.add(expected, found)
    strict.add(expected, found)
    assert quality.pq == 1
    assert strict.pq == pytest.approx((2 / 3 + 0) / 2)
    assert PanopticQuality(3).pq is None


def test_crowds_need_not_be_found() -> None:
    """A cat that is mostly in a crowd of cats does not count, a dog there does."""
    expected = segments([[1, 1, 1, 2, 2, 2]], CAT, CAT)
    quality = PanopticQuality(3)
    quality.add(expected, segments([[1, 1, 1, 2, 2, 0]], CAT, CAT), crowds={2})
    assert quality.pq == 1
    quality.add(expected, segments([[1, 1, 1, 2, 2, 0]], CAT, DOG), crowds={2})
    assert quality.pq == pytest.approx((1 + 0) / 2)


def test_parity_with_torchmetrics() -> None:
    """tests/goldens/make_panoptic_quality.py asked it for the same pictures."""
    for case in json.loads(PARITY.read_text()):
        rng, quality = np.random.default_rng(case["seed"]), PanopticQuality(case["classes"])
        for _ in range(case["pictures"]):
            expected = random_segments(rng, case["classes"])
            quality.add(expected, disturbed(expected, rng))
        assert quality.pq == pytest.approx(case["pq"], abs=1e-6), case
