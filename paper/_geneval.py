"""GenEval (Ghosh et al., 2023): its prompts drawn for its own program, and what that program found.

GenEval needs CUDA, its detector's weights and packages of their own, so it is not run from here: pictures are written
as its `evaluation/evaluate_images.py` reads them, and its results are read when they are there.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.evaluate._kept_figures import bundle_sha256
from nextscale.paper._prompted_pictures import Drawing, of_prompts
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._outputs import make_folder
from nextscale.runtime._regular_file import read_regular
from nextscale.runtime.image_io import picture_writer, write_files

PROMPTS, PROGRAM = "prompts/evaluation_metadata.jsonl", "evaluation/evaluate_images.py"
METADATA = "metadata.jsonl"  # in the folder of a prompt
SAMPLES = 4  # of each prompt, as GenEval has it
LIMIT = 256 * 2**20  # bytes of a file that is read


@dataclass(frozen=True)
class GenEval:
    """Pictures for GenEval in a folder, WORK/{row}, and its results there, which go with them: results.jsonl.

    Attributes:
        checkout: GenEval's repository.
        work: the folder.
    """

    checkout: Path
    work: Path

    def prompts(self) -> list[dict[str, Any]]:
        """GenEval's prompts with what it wants to see, as its file has them.

        Raises:
            NextscaleError: the checkout has no such file.
        """
        path = self.checkout / PROMPTS
        if not path.exists():
            raise NextscaleError(f"{path}: no such file; give --geneval the folder of GenEval's repository")
        found = _lines(path)
        if not found or not all(isinstance(item.get("prompt"), str) for item in found):
            raise NextscaleError(f'{path}: expected a JSON object with a "prompt" on each line')
        return found

    def score(
        self, row: str, generator: Generator, drawing: Drawing, on_images: Callable[[str, int, int], object]
    ) -> float | None:
        """Draw what is not drawn yet, and read GenEval's results: its overall score, the mean of its tasks' shares.

        Picture k of prompt i is image SAMPLES i + k of the seed.

        Args:
            row: its name.
            generator: its bundle.
            drawing: how to sample.
            on_images: called with what is made, and how many of how many prompts are finished.
        Returns:
            None where there are no results yet.
        Raises:
            NextscaleError: the pictures there are another bundle's, or the results are damaged or of other pictures.
        """
        prompts, folder = self.prompts(), self.work / row
        self._require_same(folder, generator, drawing)
        left = [i for i in range(len(prompts)) if not (folder / f"{i:05}" / METADATA).exists()]
        texts = of_prompts(generator, [prompts[i]["prompt"] for i in left])
        for k, i in enumerate(left):
            on_images(f"{row}: drawing for GenEval", len(prompts) - len(left) + k, len(prompts))
            request = texts.pick(np.full(SAMPLES, k)).settings(generator.bundle.manifest)
            made = generator.generate(
                first_image=SAMPLES * i, batch_size=drawing.batch_size, **request, **drawing.settings()
            )
            _write(folder / f"{i:05}", prompts[i], made.images)
        results = self._results(row)
        return _overall(results, SAMPLES * len(prompts)) if results.exists() else None

    def left(self, row: str) -> int:
        """Pictures of a row that are not drawn yet."""
        prompts, folder = self.prompts(), self.work / row
        return SAMPLES * sum(not (folder / f"{i:05}" / METADATA).exists() for i in range(len(prompts)))

    def command(self, row: str) -> str:
        """What is still to be run, in a line."""
        program, folder = str(self.checkout / PROGRAM), str(self.work / row)
        words = ["python", program, folder, "--outfile", str(self._results(row)), "--model-path", "DETECTOR"]
        return f"GenEval of {row}: run `{shlex.join(words)}`, and this command again"

    def _results(self, row: str) -> Path:
        return self.work / row / "results.jsonl"

    def _require_same(self, folder: Path, generator: Generator, drawing: Drawing) -> None:
        """Begin a folder with what decides its pictures, or go on with one of the same."""
        made_by = {"manifest_sha256": bundle_sha256(generator.bundle), "operators": generator.ops.variant}
        settings = made_by | drawing.settings()
        path = folder / "settings.json"
        if not path.exists():
            if folder.exists() and any(folder.iterdir()):
                raise NextscaleError(f"{folder}: holds files, and no {path.name}; remove it")
            make_folder(folder)
            write_files({path: lambda file: file.write(json.dumps(settings).encode())})
        elif _lines(path) != [settings]:
            raise NextscaleError(f"{folder}: has pictures of another bundle or of other settings; remove it")


def _write(folder: Path, metadata: dict[str, Any], images: NDArray[np.uint8]) -> None:
    """One prompt's pictures; the metadata are written last, so that a prompt that has them is finished."""
    make_folder(folder / "samples")
    paths = [folder / "samples" / f"{k:05}.png" for k in range(len(images))]
    write_files({path: picture_writer(path, image, {}) for path, image in zip(paths, images, strict=True)})
    text = json.dumps(metadata) + "\n"
    write_files({folder / METADATA: lambda file: file.write(text.encode())})


def _overall(path: Path, pictures: int) -> float:
    """The mean over tasks of the shares of correct pictures, as GenEval's `summary_scores.py` has it."""
    results = _lines(path)
    tasks: dict[str, list[bool]] = {}
    try:
        for item in results:
            if not isinstance(item["correct"], bool):
                raise TypeError(item)
            tasks.setdefault(item["tag"], []).append(item["correct"])
    except (KeyError, TypeError):
        raise NextscaleError(f'{path}: no results of GenEval: expected "tag" and "correct" on each line') from None
    if len(results) != pictures:
        raise NextscaleError(f"{path}: results of {len(results)} pictures, expected {pictures}; run GenEval again")
    return float(np.mean([np.mean(found) for found in tasks.values()]))


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = read_regular(path, LIMIT, "").decode("utf-8")
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        found = [None]
    if not all(isinstance(item, dict) for item in found):
        raise NextscaleError(f"{path}: damaged, or no JSON objects, one a line")
    return found
