"""Queries of a mask transformer to segmentations, as MaskFormer defines them (Cheng et al., 2021, Sec. 3.4).

A model gives Q queries, each with logits of K classes and of "no object", and with logits of a mask. With p the softmax
of the former without "no object", and m the sigmoid of the latter:

    semantic:  at each pixel the class with the largest sum over queries of p m
    panoptic:  each pixel belongs to the query with the largest p m, of those that are sure of a class; what the others
               leave of a mask has to be large enough, and all that is of one class without instances is one segment
    instances: masks of the largest p, with a score of p times the mean m in the mask (Mask2Former, Cheng et al., 2022)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of MaskFormer on COCO: the least probability of a segment's class, and the least share of its mask that it keeps.
SCORE, OVERLAP = 0.8, 0.8
# Of COCO's evaluation.
MOST_INSTANCES = 100
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Queries:
    """What a model gives for one picture.

    Attributes:
        classes: logits, float32 [Q, K + 1]; the last is "no object".
        masks: logits, float32 [Q, H, W].
    """

    classes: Floats
    masks: Floats

    def resized(self, size: tuple[int, int], part: tuple[float, float] = (1.0, 1.0)) -> Queries:
        """The same with larger or smaller masks, bilinear between the middles of pixels.

        Args:
            size: height and width.
            part: shares of the masks' height and width, from the top left, that are the picture's.
        """
        rows, columns = (
            _between(old, new, share) for old, new, share in zip(self.masks.shape[1:], size, part, strict=True)
        )
        return Queries(self.classes, rows @ self.masks @ columns.T)


@dataclass(frozen=True)
class Segments:
    """Parts of a picture that do not overlap.

    Attributes:
        ids: int64 [H, W]; 0: no segment's; n: the n-th segment's, from 1.
        classes: int64 [N].
    """

    ids: NDArray[np.int64]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Instances:
    """Things in a picture, which may overlap; the surest first.

    Attributes:
        masks: bool [N, H, W].
        classes: int64 [N].
        scores: float32 [N].
    """

    masks: NDArray[np.bool_]
    classes: NDArray[np.int64]
    scores: Floats


def semantic_map(queries: Queries) -> NDArray[np.int64]:
    """The class of each pixel, int64 [H, W]."""
    count, height, width = queries.masks.shape
    votes = _probabilities(queries.classes)[:, :-1].T @ _sigmoid(queries.masks).reshape(count, -1)
    return votes.argmax(axis=0).reshape(height, width).astype(np.int64)


def panoptic_segments(
    queries: Queries, things: Collection[int], score: float = SCORE, overlap: float = OVERLAP
) -> Segments:
    """Every pixel's segment, or none.

    Args:
        queries: of a picture.
        things: classes that have instances; all that is of another class is one segment.
        score: the least probability of a query's class.
        overlap: the least share of a query's mask, which is where its sigmoid is 0.5 or more, that is its own.
    """
    probabilities = _probabilities(queries.classes)
    best = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    kept = np.flatnonzero((best < probabilities.shape[1] - 1) & (scores > score))
    ids, classes, number_of = np.zeros(queries.masks.shape[1:], np.int64), list[int](), dict[int, int]()
    if not len(kept):
        return Segments(ids, np.zeros(0, np.int64))
    masks = _sigmoid(queries.masks[kept])
    owner = (scores[kept, None, None] * masks).argmax(axis=0)
    for place, query in enumerate(kept):
        of_query, mask, label = owner == place, masks[place] >= 0.5, int(best[query])
        visible = of_query & mask
        if not visible.any() or of_query.sum() < overlap * mask.sum():
            continue
        number = number_of.get(label)
        if number is None:
            classes.append(label)
            number = len(classes)
        if label not in things:
            number_of[label] = number
        ids[visible] = number
    return Segments(ids, np.array(classes, np.int64))


def instances(queries: Queries, things: Collection[int], most: int = MOST_INSTANCES) -> Instances:
    """The things in a picture.

    Args:
        queries: of a picture.
        things: classes that have instances.
        most: pairs of a query and a class that are looked at, the most probable ones.
    """
    probabilities = _probabilities(queries.classes)[:, :-1]
    pairs = np.argsort(-probabilities, axis=None, kind="stable")[:most]
    found, classes = np.divmod(pairs, probabilities.shape[1])
    are_things = np.isin(classes, list(things))
    found, classes = found[are_things], classes[are_things]
    masks = queries.masks[found] > 0
    sure = (_sigmoid(queries.masks[found]) * masks).sum(axis=(1, 2)) / np.maximum(masks.sum(axis=(1, 2)), 1)
    scores = probabilities[found, classes] * sure
    order = np.argsort(-scores, kind="stable")
    return Instances(masks[order], classes[order], scores[order].astype(np.float32))


def _probabilities(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def _sigmoid(x: Floats) -> Floats:
    found: Floats = (np.float32(1) + np.tanh(x / np.float32(2))) / np.float32(2)
    return found


def _between(old: int, new: int, share: float) -> NDArray[Any]:
    """float32 [new, old]: what each new pixel takes of the old ones, of which the first `share` are looked at."""
    places = ((np.arange(new) + 0.5) * (share * old / new) - 0.5).clip(0, old - 1)
    low = np.floor(places).astype(np.int64)
    weights, upper = np.zeros((new, old), np.float32), (places - low).astype(np.float32)
    weights[np.arange(new), low] = 1 - upper
    weights[np.arange(new), np.minimum(low + 1, old - 1)] += upper
    return weights
