"""What tells how much pictures are of their class: a classifier's probability, or the CLIP score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.evaluate.imagenet_classes import COUNT, imagenet_names
from nextscale.evaluate.prompt_scores import PromptScore

CLASS_PROBABILITY, CLIP_SCORE = "class probability", "CLIP score"


class ClassScore(Protocol):
    """What gives a number to a picture and its class.

    Attributes:
        title: what the number is.
        name: of the network that gives it.
    """

    title: ClassVar[str]

    @property
    def name(self) -> str: ...

    def knows(self, label: int) -> bool:
        """Whether a class of the model has such a number."""

    def __call__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of uint8 [B, H, W, 3] and a class that it knows for each: [B]."""


@dataclass(frozen=True)
class ClassProbability:
    """The probability that a classifier gives to a picture's class.

    Attributes:
        classifier: whose probability it is.
        class_ids: for each class of the model, the classifier's classes that it is.
    """

    classifier: ImageNetwork
    class_ids: Sequence[Sequence[int]]
    title: ClassVar[str] = CLASS_PROBABILITY

    @property
    def name(self) -> str:
        return self.classifier.name

    def knows(self, label: int) -> bool:
        return bool(self.class_ids[label])

    def __call__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        found = self.classifier(images).probabilities
        return np.array([found[i, list(self.class_ids[label])].sum() for i, label in enumerate(labels)], np.float64)


@dataclass(frozen=True)
class ClassClipScore:
    """The CLIP score of a picture and of "a photo of [class]", as the paper has it.

    Attributes:
        clip: what gives it.
        names: of the model's classes, see `prompt_names`.
    """

    clip: PromptScore
    names: Sequence[str]
    title: ClassVar[str] = CLIP_SCORE

    @property
    def name(self) -> str:
        return self.clip.name

    def knows(self, label: int) -> bool:
        return label < len(self.names)

    def __call__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.clip(images, [f"a photo of {self.names[label]}" for label in labels])


def prompt_names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    """What prompts call the classes of a model: "tench" of "tench, Tinca tinca"; [] where they have no names.

    Args:
        class_names: of the model; None: a model of 1000 classes has ImageNet's, any other has none.
        num_classes: of the model.
    """
    if class_names is None:
        class_names = imagenet_names() if num_classes == COUNT else ()
    return [name.partition(",")[0] for name in class_names]
