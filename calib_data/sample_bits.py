"""Images of texts by the full-precision model as bits, for calibration: sampled, matched by stage, resumable.

Beside `sample.py`, which samples tokens of a codebook. Symbols: N images, L tokens of all stages, l of one, D bits of a
token, S stages of the size that has most.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data._work_folder import open_work
from nextscale.calib_data.bit_maps import BitMaps
from nextscale.calib_data.match_bits import BitMatchingReport, match_bits
from nextscale.calib_data.sample import MATCHING_STREAM, Progress, bundle_identity, require_full_precision
from nextscale.calib_data.subjects import Subjects
from nextscale.graph_passes.recipe import Matching
from nextscale.runtime._manifest import Manifest
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._npz import read_npz
from nextscale.runtime.image_io import npz_writer, write_files


@dataclass(frozen=True)
class BitSamplingSettings:
    """How to sample; guidance, temperature and top_p are the bundle's defaults.

    Attributes:
        seed: of bits and matching.
        batch_size: images at a time.
        matching: "none"; "published": all stages are sampled, then each is matched; or "stagewise", where a stage of
            all images is matched before the next one is conditioned on it. Either way frequencies are those of a stage.
    """

    seed: int = 0
    batch_size: int = 1
    matching: Matching = "none"


def one_probabilities(logits: NDArray[np.float32], tau: float, top_p: float) -> NDArray[np.float32]:
    """That a bit is 1, as the sampler draws it (docs/bundle.md): 0 or 1 where top_p decides.

    Args:
        logits: log-odds of 1, float32 of any shape, after guidance.
        tau: temperature.
        top_p: 0 (off) to 1.
    """
    log_odds = (logits / np.float32(tau)).astype(np.float64)
    rarer = 1 / (np.exp(np.abs(log_odds)) + 1)
    if top_p:
        rarer = np.where(rarer <= 1 - float(np.float32(top_p)), 0, rarer)
    found: NDArray[np.float32] = np.where(log_odds >= 0, 1 - rarer, rarer).astype(np.float32)
    return found


def sample_bit_maps(
    generator: Generator,
    subjects: Subjects,
    settings: BitSamplingSettings,
    work: Path,
    progress: Progress = lambda what, done, total: None,
) -> tuple[BitMaps, BitMatchingReport]:
    """Sample images with a full-precision bundle whose tokens are bits.

    Image i is image i of the seed, as `Generator.generate` makes it, as far as nothing is matched. A rerun with the
    same arguments goes on after the last finished batch.

    Args:
        generator: of the bundle.
        subjects: texts and sizes of the N images.
        settings: what to sample.
        work: folder of the finished batches, made when missing; the caller removes it when the result is saved.
        progress: called after each batch.
    Raises:
        NextscaleError: the bundle is not in full precision, or work is of other settings or damaged.
        OutputError: work cannot be written.
    """
    sampling = _Sampling(generator, subjects, settings, work, progress)
    token_maps = [np.array(row) for row in subjects.sampled(generator.bundle.manifest)]
    stages = range(max(len(slices) for slices in sampling.slices))
    groups = [range(si, si + 1) for si in stages] if settings.matching == "stagewise" else [stages]
    reports = []
    for group in groups:
        rows, report = sampling.run(group, token_maps)
        for image, bits in enumerate(rows):
            token_maps[image][sampling.place(image, group)] = bits
        reports.append(report)
    report = BitMatchingReport.join(reports)
    stage_sizes = tuple(model.stage_sizes for model in generator.bundle.manifest.models)
    settings_made = {**sampling.identity, "report": report.as_json()}
    return BitMaps(subjects, tuple(token_maps), stage_sizes, settings_made), report


class _Sampling:
    """Groups of stages, one after the other, each resumed from its files in `work`.

    Attributes:
        slices: of each image, where its stages are among its tokens.
    """

    def __init__(
        self, generator: Generator, subjects: Subjects, settings: BitSamplingSettings, work: Path, progress: Progress
    ) -> None:
        bundle = generator.bundle
        require_full_precision(bundle)
        self._generator, self._subjects, self._settings = generator, subjects, settings
        self._work, self._progress, self._manifest = work, progress, bundle.manifest
        self.slices = [bundle.manifest.models[int(size)].stage_slices for size in subjects.sizes]
        self.identity = {
            "bundle": bundle_identity(bundle),
            "settings": {"images": len(subjects), **asdict(settings)},
            "subjects": subjects.digest(),
        }
        open_work(work, self.identity)

    def place(self, image: int, stages: range) -> slice:
        """Where these stages are among the image's tokens; an image of fewer stages may have none of them."""
        slices = self.slices[image][stages.start : stages.stop]
        return slice(slices[0].start, slices[-1].stop) if slices else slice(0, 0)

    def run(self, stages: range, before: list[NDArray[np.int64]]) -> tuple[list[NDArray[np.uint8]], BitMatchingReport]:
        """Sample and match some consecutive stages of all images.

        Args:
            stages: which.
            before: int64 [L, D] of each image: the bits of the stages before them, -1 elsewhere.
        Returns:
            uint8 [l, D] of each image, and the report of these stages.
        """
        path = self._work / f"stages-{stages[0]:02}-{stages[-1]:02}.npz"
        folder = path.with_suffix("")
        if not path.exists():
            folder.mkdir(exist_ok=True)
            self._sample(stages, before, folder)
            bits, report = self._match(stages, folder)
            write_files({path: npz_writer({"bits": bits, **report.arrays()})})
        shutil.rmtree(folder, ignore_errors=True)
        arrays = read_npz(path, ("bits", *BitMatchingReport.__dataclass_fields__))
        return np.split(arrays["bits"], self._begins(stages)[1:-1]), BitMatchingReport.from_arrays(arrays)

    def _begins(self, stages: range) -> NDArray[np.int64]:
        """Where each image begins among the tokens of all images at these stages, and where the last ends."""
        places = [self.place(image, stages) for image in range(len(self.slices))]
        return np.cumsum([0, *(place.stop - place.start for place in places)])

    def _sample(self, stages: range, before: list[NDArray[np.int64]], folder: Path) -> None:
        """A file for each batch; the stages before are run again, which needs less memory than their K/V caches."""
        what = "sampling" if len(stages) > 1 else f"sampling stage {stages[0] + 1}"
        forced_input = self._manifest.forced_tokens.name
        for batch in self._subjects.batches(self._settings.batch_size):
            path, last = folder / f"{batch.start:06}.npz", len(self.slices[batch.start]) - 1
            if last >= stages.start and not path.exists():
                request = self._subjects[batch].settings(self._manifest)
                inputs = {**request.pop("inputs"), forced_input: np.stack(before[batch])}
                bits, probabilities = list[NDArray[np.uint8]](), list[NDArray[np.float32]]()
                for result in self._generator.stream(
                    **request, inputs=inputs, seed=self._settings.seed, first_image=batch.start, outputs=["logits"]
                ):
                    if result.stage < stages.start:
                        continue
                    bits.append(result.tokens.astype(np.uint8))
                    probabilities.append(self._probabilities(result.outputs["logits"], result.stage))
                    if result.stage == min(stages[-1], last):
                        break
                kept: dict[str, NDArray[Any]] = {
                    "bits": np.concatenate(bits, axis=1),
                    "probabilities": np.concatenate(probabilities, axis=1),
                }
                write_files({path: npz_writer(kept)})
            self._progress(what, batch.stop, len(self._subjects))

    def _probabilities(self, logits: NDArray[np.float32], stage: int) -> NDArray[np.float32]:
        tau, top_p = (_default(self._manifest, name, stage) for name in ("tau", "top_p"))
        return one_probabilities(logits, tau, top_p)

    def _match(self, stages: range, folder: Path) -> tuple[NDArray[np.uint8], BitMatchingReport]:
        """The bits of all images at these stages, uint8 [M, D], each stage matched by itself."""
        parts = [read_npz(path, ("bits", "probabilities")) for path in sorted(folder.iterdir())]
        bits, probabilities = (
            np.concatenate([part[name].reshape(-1, part[name].shape[-1]) for part in parts])
            for name in ("bits", "probabilities")
        )
        begins, reports = self._begins(stages), []
        for si in stages:
            of_stage = np.concatenate(
                [
                    begin + np.arange(slices[si].start, slices[si].stop) - slices[stages.start].start
                    for begin, slices in zip(begins[:-1], self.slices, strict=True)
                    if si < len(slices)
                ]
            )
            sampled, p = bits[of_stage], probabilities[of_stage]
            counts = np.array([len(of_stage)]), p.sum(0, dtype=np.float64)[None], _ones(sampled)
            if self._settings.matching == "none":
                reports.append(BitMatchingReport(*counts, counts[-1]))
                continue
            found = match_bits(sampled, p, np.random.default_rng([self._settings.seed, MATCHING_STREAM, si]))
            bits[of_stage] = found.bits
            reports.append(
                BitMatchingReport(
                    *counts,
                    _ones(found.bits),
                    wanted=found.wanted,
                    moved=found.moved,
                    log_before=found.log_before,
                    log_after=found.log_after,
                )
            )
        return bits, BitMatchingReport.join(reports)


def _ones(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each bit is 1: uint8 [M, D] -> int64 [1, D]."""
    return bits.sum(0, dtype=np.int64, keepdims=True)


def _default(manifest: Manifest, name: str, stage: int) -> float:
    """Of a scalar input of requests, at a stage."""
    values = next(item.default for item in manifest.request if item.name == name)
    return values[stage if len(values) > 1 else 0]
