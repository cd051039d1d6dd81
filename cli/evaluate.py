"""`nextscale evaluate`: how far bundles are from full precision, teacher-forced."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from nextscale.calib_data.text_subjects import takes_text, text_subjects
from nextscale.cli import options
from nextscale.cli.results import results_console
from nextscale.cli.subjects import prompts_file, read_prompts
from nextscale.evaluate.teacher_forced import KL_IN_WORDS, Agreement, as_json, teacher_forced
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import FUSED
from nextscale.runtime._next_scale_loop import Generator
from nextscale.runtime._operators import Ops
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._text import printable
from nextscale.runtime._variants import each_variant
from nextscale.runtime.image_io import require_writable, write_files

if TYPE_CHECKING:
    from nextscale.evaluate.attention_error import AttentionError


@click.command()
@click.argument("reference", type=options.BUNDLE)
@click.argument("bundles", type=options.BUNDLE, nargs=-1, required=True)
@click.option("--images", type=click.IntRange(1), default=256, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True)
@options.bundle_cfg_scale
@prompts_file()
@options.size
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Images at a time.")
@click.option("--attention-error", "attention_images", type=click.IntRange(1), metavar="N",
              help="Also measure the error of attention's product with the values, on N of the images.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@options.threads
@options.operators
def evaluate(
    reference: Path,
    bundles: tuple[Path, ...],
    images: int,
    seed: int,
    cfg_scale: float | None,
    prompts: Path | None,
    area: str | None,
    ratio: str | None,
    batch: int,
    attention_images: int | None,
    json_path: Path | None,
    threads: int,
    ops: Ops,
    ops_library: str,
) -> None:
    """Compare BUNDLES with the full-precision bundle REFERENCE of the same model.

    REFERENCE samples token maps; each bundle is fed those, and its probabilities are compared with the reference's: KL
    in nats per token, and the share of tokens whose likeliest entry is the same. KL 0 is full precision; pictures at
    0.006 could not be told from those of another seed, and at 1.8 they were much worse (demo model, by FID-E).

    Bundles of text are compared on prompts, --prompts or those that builds calibrate with, at one size, their first
    unless --area or --ratio says another. REFERENCE's text encoder makes the features for all; where it has none they
    are made up. KL is then in nats per bit, and the share is of bits.

    --attention-error adds how far the integer product of attention is from the float one, and which share of that error
    comes from the values (needs the export extra); of bundles of text in self-attention, and not where it is in float.
    """
    if attention_images is not None:
        if attention_images > images:
            raise click.UsageError(f"--attention-error {attention_images}: expected at most --images, {images}")
        # It edits graphs, for which an install for running alone lacks onnx: better known before a long comparison.
        from nextscale.evaluate import attention_error
    session = SessionOptions(threads=threads, ops=ops, ops_library=ops_library, keep_text_encoder=False)
    candidates = {}
    for bundle in map(Bundle.open, bundles):
        for choice in each_variant(bundle, session):
            suffix = " (fused)" if choice.ops == FUSED else ""
            candidates[f"{bundle.path}{suffix}"] = Generator(bundle, choice)
    reference_generator = Generator(reference, session)
    recipe = reference_generator.bundle.manifest.recipe["name"]
    if recipe != "fp32":
        raise NextscaleError(
            f"{reference}: recipe {recipe}, but bundles are compared with full precision: give one built with "
            "--precision fp32 first"
        )
    manifest = reference_generator.bundle.manifest
    of_text = takes_text(manifest)
    if prompts is not None and not of_text:
        raise click.UsageError("--prompts: these bundles make pictures of classes")
    size = options.chosen_size(manifest, area, ratio)
    observed: dict[str, Bundle] = {}
    if attention_images is not None:
        observed = {
            name: candidate.bundle
            for name, candidate in candidates.items()
            if attention_error.has_attention_error(candidate.bundle)
        }
        needed = attention_error.observed_bytes(size.model)
        if observed and needed > attention_error.MOST_OBSERVED:
            raise NextscaleError(
                f"--attention-error takes {needed / 1e9:.1f} GB at this size of pictures, of however few images; "
                f"expected at most {attention_error.MOST_OBSERVED / 1e9:.0f} GB: "
                f"{'choose a smaller --area, or ' if manifest.sizes else ''}leave it out"
            )
    cfg_scale = manifest.default_cfg_scale if cfg_scale is None else cfg_scale
    texts = None if prompts is None else read_prompts(prompts)
    if json_path is not None:
        generators = [reference_generator, *candidates.values()]
        read = [path for generator in generators for path in generator.bundle.paths()]
        require_writable([json_path], [*read, *([] if prompts is None else [prompts])])
    subjects, of_images = None, None
    if of_text:
        subjects, of_images = text_subjects(reference_generator, texts, images, seed, size.index)
    with Progress(console=Console(stderr=True, quiet=not sys.stderr.isatty())) as progress:
        task = progress.add_task("comparing", total=images)
        agreements = teacher_forced(
            reference_generator,
            candidates,
            images=images,
            seed=seed,
            cfg_scale=cfg_scale,
            batch_size=batch,
            subjects=subjects,
            on_images=lambda done: progress.update(task, completed=done),
        )
        errors: dict[str, AttentionError] = {}
        if attention_images is not None and observed:
            task = progress.add_task("measuring attention", total=attention_images * len(observed))
            found = attention_error.attention_errors(
                reference_generator.bundle,
                [*observed.values()],
                session,
                images=attention_images,
                seed=seed,
                cfg_scale=cfg_scale,
                subjects=None if subjects is None else subjects[:attention_images],
                on_images=lambda done: progress.update(task, completed=done),
            )
            errors = dict(zip(observed, found, strict=True))
    console = results_console(json_path)
    *_, bits = manifest.forced_tokens.row_shape
    console.print(_table(agreements, bits if of_text else None))
    if not of_text:
        console.print(KL_IN_WORDS, soft_wrap=True)
    if attention_images is not None:
        console.print(_attention_table([*candidates], errors))
    if json_path is not None:
        settings: dict[str, Any] = {"reference": str(reference), "seed": seed, "cfg_scale": cfg_scale}
        if of_text:
            told = None if of_images is None else list(dict.fromkeys(of_images))
            settings |= {**size.settings, "prompts": told, "token_bits": bits}
        figures = as_json(agreements)
        attention = {name: {"attention_error": attention_error.as_json(error)} for name, error in errors.items()}
        document = {**settings, "bundles": {name: {**figures[name], **attention.get(name, {})} for name in figures}}
        text = json.dumps(document, indent=1) + "\n"
        write_files({json_path: lambda file: file.write(text.encode())})


def _table(agreements: dict[str, Agreement], bits: int | None) -> Table:
    """KL a token, or a bit where tokens are `bits` of them."""
    what, share = ("token", "top-1 agreement") if bits is None else ("bit", "bits equal")
    table = Table("bundle", f"KL, nats per {what}", share, "KL by stage")
    digits = 3 if bits is None else 5
    for name, agreement in agreements.items():
        kl, stderr, *by_stage = np.array([agreement.kl, agreement.kl_stderr, *agreement.stage_kl]) / (bits or 1)
        stages = " ".join(f"{stage:.{digits}f}" for stage in by_stage)
        spread = f" ± {stderr:.{digits + 1}f}" if agreement.images > 1 else ""
        table.add_row(printable(name), f"{kl:.{digits + 1}f}{spread}", f"{agreement.top1:.{digits - 2}%}", stages)
    return table


def _attention_table(names: list[str], errors: "dict[str, AttentionError]") -> Table:
    from nextscale.evaluate.attention_error import by_stage

    table = Table("bundle", "error of A V", "by stage", "V's share of it by stage")
    for name in names:
        if name not in errors:
            table.add_row(printable(name), "none: in float")
            continue
        error = errors[name]
        relative, share = by_stage(error.relative), by_stage(error.values_share)
        stages = " ".join(f"{value:.1%}" for value in relative)
        shares = " ".join("-" if np.isnan(value) else f"{value:.0%}" for value in share)
        table.add_row(printable(name), f"{relative.mean():.2%}", stages, shares)
    return table
