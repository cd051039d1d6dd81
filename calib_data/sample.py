"""Token maps of the full-precision model for calibration: sampled, matched to the probabilities, resumable.

Symbols: N images, L tokens of all stages, l of some, V codebook entries, S stages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from nextscale.calib_data._calibration_labels import calibration_labels
from nextscale.calib_data._kept_entries import Spool, kept_probabilities
from nextscale.calib_data._work_folder import open_work
from nextscale.calib_data.match_probabilities import MatchingReport, match_probabilities
from nextscale.calib_data.token_maps import TokenMaps
from nextscale.graph_passes.recipe import Matching
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._npz import read_npz
from nextscale.runtime._request import DEFAULT_CFG_SCALE, DEFAULT_TOP_P, Request, resolve_top_k
from nextscale.runtime.image_io import npz_writer, write_files

MATCHINGS: tuple[Matching, ...] = get_args(Matching)
# What is done, and how many of how many tokens are through the model.
Progress = Callable[[str, int, int], object]
MATCHING_STREAM = 2  # of the seed's random numbers; labels take the seed alone


@dataclass(frozen=True)
class SamplingSettings:
    """What to sample.

    Attributes:
        images: N; labels go round the classes, in an order drawn from the seed.
        seed: of labels, tokens and matching.
        cfg_scale, top_k, top_p: as in `Generator.generate`.
        batch_size: images at a time; more are no faster on two cores, and two of VAR-d16 need 2.2 GB instead of 1.8.
        matching: "none"; "published", the paper's, over the tokens of all stages once all are sampled; or "stagewise",
            where a stage of all images is sampled and matched before the next one is conditioned on it.
    """

    images: int = 256
    seed: int = 0
    cfg_scale: float = DEFAULT_CFG_SCALE
    top_k: int | None = None
    top_p: float = DEFAULT_TOP_P
    batch_size: int = 1
    matching: Matching = "none"

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("batch_size", self.batch_size)):
            if value < 1:
                raise NextscaleError(f"{name} {value} is out of range: expected at least 1")
        if self.matching not in MATCHINGS:
            raise NextscaleError(f'matching "{self.matching}": expected one of {", ".join(MATCHINGS)}')


def sample_token_maps(
    generator: Generator,
    settings: SamplingSettings,
    work: Path,
    progress: Progress = lambda what, done, total: None,
) -> tuple[TokenMaps, MatchingReport]:
    """Sample token maps with a full-precision bundle.

    Image i is image i of the seed, as `Generator.generate` makes it, as far as nothing is matched. Memory holds the
    logits of one batch; a rerun with the same settings goes on after the last finished batch.

    Args:
        generator: of the bundle.
        settings: what to sample.
        work: folder of the finished batches, made when missing; the caller removes it when the result is saved.
        progress: called after each batch.
    Raises:
        NextscaleError: the bundle is not in full precision, or work is of other settings or damaged.
        RequestError: a setting is out of range.
        OutputError: work cannot be written.
    """
    sampling = _Sampling(generator, settings, work, progress)
    model = generator.bundle.model
    token_maps = np.full((settings.images, model.num_tokens), -1, np.int64)
    reports = []
    groups = [range(model.num_stages)]
    if settings.matching == "stagewise":
        groups = [range(stage, stage + 1) for stage in groups[0]]
    for stages in groups:
        tokens, report = sampling.run(stages, token_maps)
        token_maps[:, _tokens_of(model.stage_slices, stages)] = tokens
        reports.append(report)
    report = MatchingReport.join(reports)
    return TokenMaps(sampling.labels, token_maps, {**sampling.identity, "report": report.as_json()}), report


def mean_log_probability(
    generator: Generator,
    maps: TokenMaps,
    *,
    cfg_scale: float = DEFAULT_CFG_SCALE,
    batch_size: int = 2,
    progress: Progress = lambda what, done, total: None,
) -> float:
    """How plausible the maps are as a whole: mean log-probability of a token given all before it, nats.

    Under the guided distribution before top_k and top_p, which gives every entry a probability.
    """
    slices, total = generator.bundle.model.stage_slices, 0.0
    for first in range(0, len(maps), batch_size):
        batch = slice(first, min(first + batch_size, len(maps)))
        tokens = maps.token_maps[batch]
        for result in generator.stream(
            maps.class_labels[batch], cfg_scale=cfg_scale, forced_tokens=tokens, outputs=["logits"]
        ):
            logits = result.outputs["logits"].astype(np.float64)
            maximum = logits.max(-1)
            taken = np.take_along_axis(logits, tokens[:, slices[result.stage], None], -1)[..., 0]
            total += float((taken - maximum - np.log(np.exp(logits - maximum[..., None]).sum(-1))).sum())
        progress("scoring", batch.stop * tokens.shape[1], maps.token_maps.size)
    return total / maps.token_maps.size


class _Sampling:
    """Groups of stages, one after the other, each resumed from its files in `work`."""

    def __init__(self, generator: Generator, settings: SamplingSettings, work: Path, progress: Progress) -> None:
        bundle = generator.bundle
        require_full_precision(bundle)
        self._generator, self._settings, self._work, self._progress = generator, settings, work, progress
        self.labels = calibration_labels(bundle.model.num_classes, settings.images, settings.seed)
        self._top_k = resolve_top_k(settings.top_k, bundle.model)
        request = Request.create(
            bundle,
            self.labels,
            seed=settings.seed,
            cfg_scale=settings.cfg_scale,
            top_k=self._top_k,
            top_p=settings.top_p,
        )
        self._uniforms = request.arrays["uniforms"]
        self.identity = {
            "bundle": bundle_identity(bundle),
            "settings": {**asdict(settings), "top_k": self._top_k},
        }
        open_work(work, self.identity)

    def run(self, stages: range, before: NDArray[np.int64]) -> tuple[NDArray[np.int64], MatchingReport]:
        """Sample and match some consecutive stages of all images.

        Args:
            stages: which.
            before: int64 [N, L], tokens of the stages before them, -1 elsewhere.
        Returns:
            int64 [N, l], and the report of these stages.
        """
        path = self._work / f"stages-{stages[0]:02}-{stages[-1]:02}.npz"
        folder = path.with_suffix("")
        if not path.exists():
            slices = self._generator.bundle.model.stage_slices[stages.start : stages.stop]
            stage_of_token = np.repeat(np.arange(len(slices)), [part.stop - part.start for part in slices])
            vocab_size, batch_size = self._generator.bundle.model.vocab_size, self._settings.batch_size
            spool = Spool(folder, len(before), len(stage_of_token), vocab_size, batch_size)
            self._sample(stages, before, spool)
            tokens, report = self._match(spool, stage_of_token, stages)
            write_files({path: npz_writer({"tokens": tokens, **report.arrays()})})
        shutil.rmtree(folder, ignore_errors=True)
        arrays = read_npz(path, ("tokens", *MatchingReport.__dataclass_fields__))
        return arrays["tokens"], MatchingReport.from_arrays(arrays)

    def _sample(self, stages: range, before: NDArray[np.int64], spool: Spool) -> None:
        """Fill the spool; the stages before are run again, which needs less memory than keeping their K/V caches."""
        settings, model = self._settings, self._generator.bundle.model
        length = model.stage_slices[stages[-1]].stop
        what = "sampling" if len(stages) > 1 else f"stage {stages[0] + 1} of {model.num_stages}"
        for first in spool.firsts:
            batch = slice(first, min(first + spool.batch_size, len(before)))
            if not spool.has(first):
                tokens, entries = [], [list[NDArray[np.void]]() for _ in self.labels[batch]]
                for result in self._generator.stream(
                    self.labels[batch],
                    uniforms=self._uniforms[batch],
                    cfg_scale=settings.cfg_scale,
                    top_k=self._top_k,
                    top_p=settings.top_p,
                    forced_tokens=before[batch],
                    outputs=["logits"],
                ):
                    if result.stage < stages.start:
                        continue
                    tokens.append(result.tokens)
                    for rows, logits, taken in zip(entries, result.outputs["logits"], result.tokens, strict=True):
                        rows += spool.sparse(kept_probabilities(logits, self._top_k, settings.top_p), taken)
                    if result.stage == stages[-1]:
                        break
                spool.write(first, np.concatenate(tokens, axis=1), [row for rows in entries for row in rows])
            self._progress(what, batch.stop * length, len(before) * length)

    def _match(
        self, spool: Spool, stage_of_token: NDArray[np.int64], stages: range
    ) -> tuple[NDArray[np.int64], MatchingReport]:
        """The spool's tokens [N, l] after matching, all stages of it pooled."""
        target = spool.sums(stage_of_token, len(stages))
        sampled = spool.tokens()
        before = _frequencies(sampled, stage_of_token, target)
        if self._settings.matching == "none":
            return sampled, MatchingReport(target, before, before)
        rng = np.random.default_rng([self._settings.seed, MATCHING_STREAM, stages.start])
        p_hat = target.sum(0) / sampled.size  # Eq. 17
        matched = match_probabilities(sampled.ravel(), spool.kept, p_hat, rng)
        tokens = matched.tokens.reshape(sampled.shape)
        after = _frequencies(tokens, stage_of_token, target)
        counts = matched.wanted, len(matched.moved), matched.immovable
        logs = float(matched.log_before.sum()), float(matched.log_after.sum())
        return tokens, MatchingReport(target, before, after, *counts, *logs)


def require_full_precision(bundle: Bundle) -> None:
    """Refuse a quantized bundle: calibration wants the probabilities that quantization is to keep.

    Raises:
        NextscaleError: the recipe is not fp32.
    """
    recipe = bundle.manifest.recipe.get("name")
    if recipe != "fp32":
        raise NextscaleError(
            f"{bundle.path}: recipe {recipe}, but token maps are sampled in full precision; "
            "give a bundle built with --precision fp32"
        )


def _frequencies(
    tokens: NDArray[np.int64], stage_of_token: NDArray[np.int64], target: NDArray[np.float64]
) -> NDArray[np.int64]:
    """How often each entry is taken at each stage: int64 [N, l] -> int64 [S, V]."""
    num_stages, vocab_size = target.shape
    flat = (stage_of_token * vocab_size + tokens).ravel()
    return np.bincount(flat, minlength=num_stages * vocab_size).reshape(num_stages, vocab_size)


def _tokens_of(slices: tuple[slice, ...], stages: range) -> slice:
    return slice(slices[stages[0]].start, slices[stages[-1]].stop)


def bundle_identity(bundle: Bundle) -> dict[str, str]:
    """Its name, and one sha256 of those of its files."""
    files = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
    return {"name": bundle.manifest.name, "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
