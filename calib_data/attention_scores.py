"""Statistics of the attention that tokens draw (Score, Eq. 11), from teacher-forced images, in bounded memory.

A token is attentive if its score is above theta, strictly. In float32, as in a graph: thetas are the float32 numbers
nearest to multiples of 1e-4, and twice such a theta is one again, so a histogram with those edges tells exactly how
many tokens any theta and kernel order (Eq. 14) has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from nextscale.calib_data._calibration_labels import calibration_labels
from nextscale.calib_data.observed_stage import ObservedStage, OnImages, nobody
from nextscale.calib_data.subjects import Subjects, TokenRows
from nextscale.graph_passes._attention_patterns import attention_patterns, refusals
from nextscale.graph_passes.observe_scores import observe_scores
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._session import SessionOptions

THETA_STEPS = 10_000  # the grid of thetas is [0, 1] in steps of 1e-4 (Sec. 4.1)
EDGES = (np.arange(THETA_STEPS + 1) / THETA_STEPS).astype(np.float32)
# Numbers of attentive tokens are kept for these indices into EDGES, about 8 to an octave, descending.
COUNTED = np.unique(np.rint(THETA_STEPS * 2.0 ** -np.arange(0, np.log2(THETA_STEPS), 1 / 8)).astype(np.int64))[::-1]


@dataclass(frozen=True)
class ScoreStatistics:
    """What tokens draw, over all images, rows (two an image, with guidance), heads and blocks.

    Attributes:
        histogram: int64 [S, 10000], scores in (EDGES[k], EDGES[k + 1]]; a score of 0 is in none.
        attentive: int64 [S, K, T + 1], of heads of a row and block, how many have 0, 1, ... T tokens above
            EDGES[COUNTED[k]], T being the most that a head sees.
        images: N.
        samples: heads seen at each stage: N * 2 * heads * blocks.
    """

    histogram: NDArray[np.int64]
    attentive: NDArray[np.int64]
    images: int
    samples: int

    def above(self) -> NDArray[np.int64]:
        """Tokens of each stage whose score is above EDGES[k]: int64 [S, 10001]."""
        reversed_sums = np.cumsum(self.histogram[:, ::-1], axis=1)[:, ::-1]
        return np.pad(reversed_sums, ((0, 0), (0, 1)))

    def budgets(self, theta_index: int, overflow: float) -> tuple[int, ...]:
        """The fewest rows a head needs at each stage so that at most a share `overflow` of the heads has more tokens.

        For the nearest theta at or below EDGES[theta_index] that is counted, so never too few.
        """
        counted = int(np.argmax(theta_index >= COUNTED))
        beyond = self.samples - np.cumsum(self.attentive[:, counted], axis=1)
        return tuple(int(stage) for stage in np.argmax(beyond <= overflow * self.samples, axis=1))


def open_observed(bundle: Bundle, options: SessionOptions) -> ObservedStage:
    """The bundle's stage graph with the scores of each attention as further outputs.

    Args:
        bundle: in full precision.
        options: threads and memory.
    Raises:
        NextscaleError: the stage graph has no attention that can be observed.
    """
    path = bundle.graph_path("stage")
    model = ir.load(path)
    if not attention_patterns(model.graph):
        reasons = "; ".join(map(str, refusals(model.graph))) or "it has no Softmax"
        raise NextscaleError(f"{path}: no attention found: {reasons}")
    return ObservedStage.open(bundle, observe_scores(model), options)


def collect_scores(
    observed: ObservedStage,
    subjects: Subjects,
    token_maps: TokenRows,
    *,
    seed: int = 0,
    batch_size: int = 2,
    on_images: OnImages = nobody,
) -> ScoreStatistics:
    """Feed token maps to a full-precision model and count the scores of all its heads.

    Args:
        observed: its stage graph gives scores (`open_observed`).
        subjects: what the N images are of, at one size.
        token_maps: int64 [L] of each; -1 is sampled.
        seed: of what is sampled.
        batch_size: images at a time.
        on_images: called with the number of images finished, after each batch.
    """
    model = observed.bundle.manifest.models[int(subjects.sizes[0])]
    longest = max(model.num_tokens, *(len(text) for text in subjects.texts or ((),)))
    histogram = np.zeros((model.num_stages, THETA_STEPS), np.int64)
    attentive = np.zeros((model.num_stages, len(COUNTED), longest + 1), np.int64)
    for _, stage in observed.run(subjects, token_maps, batch_size=batch_size, on_images=on_images, seed=seed):
        for scores in stage.outputs.values():
            count_scores(scores, histogram[stage.stage], attentive[stage.stage])
    samples = len(subjects) * 2 * model.num_heads * len(observed.outputs)
    return ScoreStatistics(histogram, attentive, len(subjects), samples)


def sampled_scores(
    bundle: Bundle, images: int, seed: int, options: SessionOptions, on_images: OnImages = nobody
) -> ScoreStatistics:
    """The statistics of images that a bundle of classes itself samples, labels spread over them.

    Args:
        bundle: in full precision.
        images: N.
        seed: of labels and tokens.
        options: threads and memory.
        on_images: called with the number of images finished, after each batch.
    """
    subjects = Subjects.of_classes(calibration_labels(bundle.model.num_classes, images, seed))
    observed = open_observed(bundle, options)
    return collect_scores(observed, subjects, subjects.sampled(bundle.manifest), seed=seed, on_images=on_images)


def count_scores(scores: NDArray[np.float32], histogram: NDArray[np.int64], attentive: NDArray[np.int64]) -> None:
    """Add scores [rows, H, T] to a stage's histogram [10000] and its numbers of attentive tokens [K, T + 1]."""
    # A mean of rows that sum to 1 may round to a little more than 1.
    heads = np.minimum(scores, 1).reshape(-1, scores.shape[-1])
    edge = np.searchsorted(EDGES, heads)  # EDGES[edge - 1] < score <= EDGES[edge]
    histogram += np.bincount(edge.ravel(), minlength=THETA_STEPS + 1)[1:]
    # Above EDGES[COUNTED[k]] is a token whose edge is beyond COUNTED[k]; COUNTED descends.
    first_below = len(COUNTED) - np.searchsorted(COUNTED[::-1], edge)
    rows, bins = np.arange(len(heads))[:, None], len(COUNTED) + 1
    by_head = np.bincount((rows * bins + first_below).ravel(), minlength=len(heads) * bins).reshape(-1, bins)
    above = np.cumsum(by_head[:, :-1], axis=1)
    places = above + np.arange(len(COUNTED)) * attentive.shape[1]
    attentive += np.bincount(places.ravel(), minlength=attentive.size).reshape(attentive.shape)
