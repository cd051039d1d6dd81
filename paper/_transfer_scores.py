"""The attention of a trained model, lent to one with random weights.

Shift-and-sum costs as much as it has places for attentive tokens, and random weights attend to everything alike: their
own statistics would give no attentive tokens, and a speed that no trained model has. So such a model gets theta and
places from the demo model's statistics: each of its stages takes the demo model's stage with the nearest number of
keys T, with the same distribution of scores and the same share of attentive tokens among them; then theta is chosen
under the budget with the model's own operations. Models for 256 px have the demo model's stages, one to one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.attention_scores import COUNTED, THETA_STEPS, ScoreStatistics
from nextscale.models.bit_operations import keys
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._npz import checked, read_npz
from nextscale.runtime.image_io import Writer, npz_writer

DEMO_ATTENTION = Path(__file__).parent / "statistics" / "demo_attention.npz"


def statistics_writer(statistics: ScoreStatistics, model: ModelInfo) -> Writer:
    """Write statistics of `model` as an .npz that `read_scores` reads."""
    return npz_writer(
        {
            "histogram": statistics.histogram,
            "attentive": statistics.attentive,
            "images": np.array(statistics.images),
            "samples": np.array(statistics.samples),
            "keys": keys(model),
        }
    )


def read_scores(path: Path) -> tuple[ScoreStatistics, NDArray[np.int64]]:
    """What `statistics_writer` wrote, and T of each stage of its model, the tokens it attends to: int64 [S].

    Raises:
        NextscaleError: the file cannot be read.
        ValueError: it holds something else.
    """
    arrays = read_npz(path)
    tokens = checked(arrays, "keys", "i", (None,))
    if not len(tokens) or (tokens < 1).any():
        raise ValueError("keys: of no stages, or of some that attend to nothing")
    histogram = checked(arrays, "histogram", "i", (len(tokens), THETA_STEPS))
    attentive = checked(arrays, "attentive", "i", (len(tokens), len(COUNTED), int(tokens.max()) + 1))
    images, samples = (int(checked(arrays, name, "i", ())) for name in ("images", "samples"))
    if min(images, samples) < 1 or histogram.min() < 0 or attentive.min() < 0:
        raise ValueError("of no images, or of fewer than no tokens")
    return ScoreStatistics(histogram, attentive, images, samples), tokens


def demo_statistics(model: ModelInfo, path: Path = DEMO_ATTENTION) -> ScoreStatistics:
    """The demo model's statistics as if they were of `model`.

    Args:
        model: whose stages, heads and blocks they shall fit.
        path: what `statistics_writer` wrote.
    """
    known, known_keys = read_scores(path)
    samples = known.images * 2 * model.num_heads * model.depth
    more_heads = samples / known.samples
    histogram = np.zeros((model.num_stages, THETA_STEPS), np.int64)
    attentive = np.zeros((model.num_stages, len(COUNTED), model.num_tokens + 1), np.int64)
    for stage, tokens in enumerate(keys(model)):
        like = int(np.argmin(np.abs(np.log(known_keys / tokens))))
        more_tokens = tokens / known_keys[like]
        histogram[stage] = _scaled(known.histogram[like][None, ::-1], more_heads * more_tokens)[0, ::-1]
        counts = _scaled(known.attentive[like], more_heads)
        places = np.rint(np.arange(counts.shape[1]) * more_tokens).astype(np.int64)
        inside = places <= model.num_tokens
        np.add.at(attentive[stage].T, places[inside], counts[:, inside].T)
    return ScoreStatistics(histogram, attentive, known.images, samples)


def _scaled(counts: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
    """Rows of counts times a factor, as integers whose sums over the first entries are rounded once."""
    return np.diff(np.rint(np.cumsum(counts, axis=1) * factor).astype(np.int64), axis=1, prepend=0)
