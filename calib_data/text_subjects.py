"""What images of a bundle of text are of where nobody says it of each: prompts in turn, or features made up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data.subjects import Subjects
from nextscale.models.infinity.prompts import PROMPTS
from nextscale.runtime._errors import RequestError
from nextscale.runtime._manifest import Manifest
from nextscale.runtime._next_scale_loop import Generator, features_of_prompts
from nextscale.runtime._texts import probe_features

# Of features that no text has: how many texts, and their tokens.
MADE_UP_TEXTS, MADE_UP_LENGTHS = 64, range(4, 25)


def takes_text(manifest: Manifest) -> bool:
    """Whether the bundle makes pictures of text."""
    return manifest.input_of_kind("text_features") is not None


def drawn_subjects(
    texts: Sequence[NDArray[np.float32]], sizes: Sequence[int], images: int, rng: np.random.Generator
) -> Subjects:
    """N images of texts in turn, in an order that is drawn, and of sizes in turn, so that all are seen.

    Args:
        texts: float32 [Lt, Ct] each.
        sizes: indices of sizes; calibration knows of stages behind the last of the first images no more than that it is
            like them, so that those of most stages come first.
        images: N.
        rng: draws the order.
    """
    order = np.resize(rng.permutation(len(texts)), images).tolist()
    return Subjects(np.resize(sizes, images), texts=tuple(texts[number] for number in order))


def text_subjects(
    generator: Generator, prompts: Sequence[str] | None, images: int, seed: int, size: int = 0
) -> tuple[Subjects, tuple[str, ...] | None]:
    """N images of prompts in turn, in an order that is drawn from the seed, and the prompt of each.

    Features are those of the bundle's text encoder. Without one they are `probe_features`, and there are no prompts.

    Args:
        generator: of the bundle that makes the features.
        prompts: None: those that a build calibrates with.
        images: N.
        seed: of the order.
        size: the index of the size of all images.
    Raises:
        RequestError: prompts are given and the bundle has no text encoder; or one is empty, too long or no text.
    """
    manifest = generator.bundle.manifest
    features = manifest.input_of_kind("text_features")
    assert features is not None
    rng, sizes = np.random.default_rng([seed, 1]), np.full(images, size, np.int64)
    if "text_encoder" in manifest.graphs:
        wanted = PROMPTS if prompts is None else prompts
        order = np.resize(rng.permutation(len(wanted)), images).tolist()
        of_images = tuple(wanted[number] for number in order)
        return Subjects(sizes, texts=tuple(features_of_prompts(generator, of_images))), of_images
    if prompts is not None:
        raise RequestError(f"prompts: {generator.bundle.path} has no text encoder to read them; leave them out")
    most = MADE_UP_LENGTHS.stop if features.max_tokens is None else features.max_tokens
    lengths = rng.integers(MADE_UP_LENGTHS.start, MADE_UP_LENGTHS.stop, MADE_UP_TEXTS).clip(max=most)
    texts: list[NDArray[np.float32]] = probe_features(lengths.tolist(), int(features.shape[2]))
    return Subjects(sizes, texts=tuple(texts[image % MADE_UP_TEXTS] for image in range(images))), None
