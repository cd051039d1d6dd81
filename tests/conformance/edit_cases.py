"""Cases of encoding and editing: pictures and masks from seeds, and what the Python runtime makes of them.

A picture is a seed's, so that no file holds it: byte t of picture i is 256 times uniform t of image i, rounded down. A
mask is a list of rows of 0 and 1.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from model_infos import VAR_D16, squares
from numpy.typing import NDArray

from nextscale.runtime import Generation, Generator, ModelInfo, StageResult
from nextscale.runtime._edit import Mask, blend, box_mask, kept_tokens, latent_mask, pixel_mask
from nextscale.runtime._manifest import Size
from nextscale.runtime._uniforms import uniforms

SEED = 0
# Latent, pixels of a position, stages: models for 256 and 512 px, small ones, and oblong ones.
MODELS: tuple[tuple[Size, Size, tuple[Size, ...]], ...] = (
    ((16, 16), (1, 1), squares(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    ((32, 32), (1, 1), squares(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
    ((5, 5), (4, 4), squares(1, 2, 3, 4, 5)),
    ((6, 6), (2, 2), squares(2, 3, 6)),
    ((4, 10), (3, 2), ((1, 1), (1, 3), (2, 3), (1, 7), (4, 10))),
    ((7, 3), (1, 5), ((1, 2), (3, 1), (5, 2), (9, 4))),
)
MASKS = 24  # of each model
BLENDS = 60


def pictures(seed: int, count: int, size: Sequence[int]) -> NDArray[np.uint8]:
    height, width = size
    numbers = uniforms(seed, range(max(count, 1)), height * width * 3)[:count]
    return np.floor(numbers * 256).astype(np.uint8).reshape(count, height, width, 3)


def rows(mask: Mask) -> list[str]:
    return ["".join(map(str, row)) for row in mask.astype(int)]


def mask_of(lines: Sequence[str]) -> Mask:
    return np.array([[letter == "1" for letter in line] for line in lines])


def kept_tokens_cases() -> Iterator[dict[str, Any]]:
    """Random masks of any share, boxes, and what is outside of boxes."""
    rng = np.random.default_rng(SEED)
    for latent, (lines, columns), stages in MODELS:
        image = (latent[0] * lines, latent[1] * columns)
        model = model_of(latent, image, stages)
        for number in range(MASKS):
            if number % 3 == 0:
                mask = rng.random(image) < rng.random() / (lines * columns)
            else:
                (y0, y1), (x0, x1) = (sorted(rng.integers(0, end + 1, 2)) for end in image)
                mask = np.zeros(image, np.bool_)
                mask[y0:y1, x0:x1] = True
                mask ^= number % 3 == 2
            positions = latent_mask(mask, model)
            [kept] = rows(kept_tokens(positions, model)[None])
            sizes = {"latent": list(latent), "stages": [list(stage) for stage in stages]}
            yield {**sizes, "mask": rows(mask), "positions": rows(positions), "kept": kept}
    yield {
        "latent": [3, 3],
        "stages": [[1, 1]],
        "mask": rows(np.ones((13, 12), np.bool_)),
        "error": "RequestError",
        "contains": ["pictures of 13 x 12 can't be edited: they are no multiple of 3 x 3"],
    }


def model_of(latent: Size, image: Size, stages: tuple[Size, ...]) -> ModelInfo:
    return replace(VAR_D16, stage_sizes=stages, latent_size=latent, image_size=image)


def blend_cases() -> Iterator[dict[str, Any]]:
    """Picture 0 of the seed is the old one, 1 and 2 are the new ones."""
    rng = np.random.default_rng(SEED)
    for number in range(BLENDS):
        size = (int(rng.integers(1, 24)), int(rng.integers(1, 24)))
        mask = rng.random(size) < rng.choice([0.1, 0.5, 0.9, 0.99, 1.0])
        if number % 2:
            mask[size[0] // 4 :, size[1] // 3 :] = True
        feather = int(rng.choice([0, 1, 2, 3, 4, 7, 23]))
        old, *new = pictures(number, 3, size)
        mixed = blend(old, np.array(new), mask, feather)
        yield {"seed": str(number), "mask": rows(mask), "feather": feather, "images_sha256": hashes(mixed)}


def box_case(case: dict[str, Any], model: ModelInfo) -> dict[str, Any]:
    """With the pixels of what is within the box, or outside, where it is one."""
    case = {"outside": False, **case}
    return case if "error" in case else {**case, "mask": rows(box(case["ends"], case["outside"], model))}


def box(ends: Sequence[float], outside: bool, model: ModelInfo) -> Mask:
    return pixel_mask(box_mask(model.latent_size, ends) ^ outside, model)


def edit_case(case: dict[str, Any], model: ModelInfo) -> dict[str, Any]:
    """With a mask's rows, of the picture's size if its own is not said."""
    case = {"picture": "1", "size": list(model.image_size), "mask": None, "keep_stages": 0, "feather": None, **case}
    told = case["mask"]
    if told is None:
        return case
    if "box" in told:
        return {**case, "mask": rows(box(told["box"], told.get("outside", False), model))}
    rng = np.random.default_rng(SEED)
    return {**case, "mask": rows(rng.random(told.get("size", model.image_size)) < told["random"])}


def edit_arguments(case: dict[str, Any]) -> dict[str, Any]:
    """What `Generator.edit` takes further than `Generator.generate`."""
    return {
        "image": pictures(int(case["picture"]), 1, case["size"])[0],
        "mask": None if case["mask"] is None else mask_of(case["mask"]),
        "keep_stages": case["keep_stages"],
        "feather": case["feather"],
    }


def edit_results(
    generator: Generator, case: dict[str, Any], request: dict[str, Any], streaming: bool
) -> dict[str, Any]:
    """What an edit gives, in the form of the suite's `expected`; previews only when streaming."""
    previews: list[str] = []

    def on_stage(stage: StageResult) -> None:
        previews.append(hashlib.sha256(stage.preview().tobytes()).hexdigest())

    made: Generation = generator.edit(**edit_arguments(case), **request, on_stage=on_stage if streaming else None)
    found = {"token_maps": made.token_maps.tolist(), "images_sha256": hashes(made.images)}
    return {**found, "previews_sha256": previews} if streaming else found


def hashes(images: NDArray[np.uint8]) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
