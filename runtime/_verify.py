"""Is a bundle what it was when it was built, and does it make the same tokens on this machine?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import saturation_warning
from nextscale.runtime._manifest import FUSED, Manifest
from nextscale.runtime._next_scale_loop import Generation, Generator, StageResult
from nextscale.runtime._probe_pictures import probe_pictures
from nextscale.runtime._request import RequestSettings
from nextscale.runtime._session import SessionOptions
from nextscale.runtime._texts import probe_features
from nextscale.runtime._variants import each_variant

# Other CPUs and releases of ONNX Runtime round differently, and one token that changes changes all after it. So where
# tokens differ, each is judged given the stored ones before it. A coarse recipe makes much of a rounding: half as many
# may differ from the stored ones as the build found to differ from full precision. Saturation, where only the stored
# ones have it, is an error as large as that of quantization.
MINIMUM_AGREEMENT = 0.95
SHARE_OF_QUANTIZATION = 0.5
SHARE_OF_SATURATION = 1.0
# Of the probe pictures' tokens: other CPUs and operators round differently, and one that changes changes later ones.
MINIMUM_ENCODED = 0.9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, whether it is as it should be, and a line that says what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class VerifyReport:
    """All checks that were made; after one that fails, those that need it are left out."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def verify(
    bundle: Bundle, options: SessionOptions | None = None, on_check: Callable[[Check], object] = lambda check: None
) -> VerifyReport:
    """Check a bundle's hashes, its graphs' contract, logits, tokens and encoded pictures against the stored, its forms.

    Args:
        bundle: an open bundle.
        options: threads, memory and operators; with ops "auto" the stock graphs are checked and, where they can run,
            the fused ones.
        on_check: called with each check as it is done.
    """
    checks = []
    for check in _checks(bundle, each_variant(bundle, options or SessionOptions())):
        checks.append(check)
        on_check(check)
        if not check.passed:
            break
    return VerifyReport(tuple(checks))


def stored_settings(manifest: Manifest) -> RequestSettings:
    """What the stored generation asked for: seed, inputs, and its texts."""
    stored = manifest.verify
    inputs = dict(stored.inputs)
    features = manifest.input_of_kind("text_features")
    if features is not None and stored.text_lengths is not None:
        inputs[features.name] = probe_features(stored.text_lengths, int(features.shape[2]))
    settings: RequestSettings = {"seed": stored.seed, "inputs": inputs}
    if stored.prompts is not None:
        settings["prompts"] = stored.prompts
    return settings


def stored_size(manifest: Manifest) -> Manifest:
    """The manifest of the stored generation's size; see `Manifest.of_size`."""
    size = manifest.input_of_kind("size")
    return manifest if size is None else manifest.of_size(manifest.verify.inputs.get(size.name, 0))


def non_finite_stage(generator: Generator) -> int | None:
    """The first stage whose logits are not all finite in the stored generation at the strongest guidance, or None."""
    manifest = generator.bundle.manifest
    strongest = {item.name: item.maximum for item in manifest.request if item.name == "cfg_scale" and item.maximum}
    stages = generator.stream(**_with_inputs(stored_settings(manifest), strongest), outputs=["logits"])
    return next((stage.stage for stage in stages if not np.isfinite(stage.outputs["logits"]).all()), None)


def _checks(bundle: Bundle, variants: Sequence[SessionOptions]) -> Iterator[Check]:
    yield _check_files(bundle)
    for options in variants:
        suffix = f" ({FUSED})" if options.ops == FUSED else ""
        for check in _variant_checks(Generator(bundle, options)):
            yield replace(check, name=check.name + suffix)


def _variant_checks(generator: Generator) -> Iterator[Check]:
    yield _check_contract(generator)
    yield _check_logits(generator)
    # The stored tokens are the stock graphs'; those of the fused ones may differ as those of another CPU may.
    yield _check_stored_tokens(generator, _generate_stored(generator))
    if generator.bundle.manifest.verify.encoded is not None:
        yield _check_encoder(generator)
    if "generate" in generator.bundle.manifest.graphs:
        yield _check_forms(generator)


def _check_files(bundle: Bundle) -> Check:
    changed = list(bundle.changed_files())
    if changed:
        return Check("files", False, f"changed since the bundle was built: {', '.join(changed)}")
    return Check("files", True, f"{len(bundle.manifest.files)} files have the size and sha256 of the manifest")


def _check_contract(generator: Generator) -> Check:
    try:
        generator.load(*generator.bundle.manifest.graphs)
    except NextscaleError as error:
        return Check("contract", False, str(error))
    return Check("contract", True, "the graphs' inputs and outputs are those of the manifest")


def _check_logits(generator: Generator) -> Check:
    bad = non_finite_stage(generator)
    if bad is not None:
        return Check(
            "logits", False, f"NaN or infinite in stage {bad}: the weights, or what they lead to, overflow float32"
        )
    return Check("logits", True, "all are finite")


def _generate_stored(generator: Generator) -> Generation:
    return generator.generate(**stored_settings(generator.bundle.manifest))


def _with_inputs(settings: RequestSettings, inputs: Mapping[str, Any]) -> RequestSettings:
    return {**settings, "inputs": {**(settings["inputs"] or {}), **inputs}}


def _check_stored_tokens(generator: Generator, made: Generation) -> Check:
    manifest = stored_size(generator.bundle.manifest)
    stored = np.array(manifest.verify.token_maps, dtype=np.int64).reshape(-1, *manifest.forced_tokens.row_shape)
    if np.array_equal(made.token_maps, stored):
        return Check("tokens", True, f"all {stored.size} tokens are the stored ones")
    if made.token_maps.shape != stored.shape:
        shapes = f"{list(made.token_maps.shape)}, the stored ones {list(stored.shape)}"
        return Check("tokens", False, f"token maps are {shapes}: the graphs are not those of the manifest's stages")
    agreement = float((_greedy_given(generator, stored) == stored).mean())
    saturates = generator.ops.variant != FUSED and saturation_warning(manifest.recipe) is not None
    only_stored = not saturates and _agreement(manifest.recipe).get("saturated") is True
    minimum = _minimum_agreement(manifest.recipe, SHARE_OF_SATURATION if only_stored else SHARE_OF_QUANTIZATION)
    detail = (
        f"tokens differ from the stored ones; given the stored tokens before it, {agreement:.1%} of the tokens agree "
        f"(expected {minimum:.0%})"
    )
    if only_stored:
        detail += "; the bundle was built on a CPU without VNNI, whose integer products saturated"
        return Check("tokens", agreement >= minimum, detail)
    if agreement >= minimum:
        return Check("tokens", True, f"{detail}: this machine rounds differently")
    if saturates:
        detail += "; this CPU has no VNNI instructions, so that integer products saturate"
    return Check("tokens", False, detail)


def _check_encoder(generator: Generator) -> Check:
    manifest = stored_size(generator.bundle.manifest)
    pictures = probe_pictures(manifest.model.image_size, len(manifest.verify.encoded or ()))
    found = generator.encode(pictures)
    stored = np.array(manifest.verify.encoded, np.int64).reshape(found.shape)
    agreement = float((found == stored).mean())
    detail = f"{agreement:.1%} of the probe pictures' tokens are the stored ones (expected {MINIMUM_ENCODED:.0%})"
    return Check("encoder", agreement >= MINIMUM_ENCODED, detail)


def _agreement(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the build found against full precision; nothing where it tells nothing."""
    found = recipe.get("agreement")
    return found if isinstance(found, dict) else {}


def _minimum_agreement(recipe: Mapping[str, Any], share: float) -> float:
    """What another rounding may leave of the stored tokens: a share of what quantization left of full precision's."""
    top1 = _agreement(recipe).get("top1")
    return min(MINIMUM_AGREEMENT, 1 - share * (1 - top1)) if isinstance(top1, float) else MINIMUM_AGREEMENT


def _greedy_given(generator: Generator, stored: NDArray[np.int64]) -> NDArray[np.int64]:
    """The likeliest token of each place given the stored tokens before it, of the shape of stored."""
    manifest = generator.bundle.manifest
    forced = {manifest.forced_tokens.name: stored}
    stages = generator.stream(**_with_inputs(stored_settings(manifest), forced), outputs=["logits"])
    return np.concatenate([_likeliest(stage) for stage in stages], axis=1)


def _likeliest(stage: StageResult) -> NDArray[np.int64]:
    """Of logits over the codebook the entry of the largest; where tokens are bits, logits are the log-odds of 1."""
    logits = stage.outputs["logits"]
    found = logits > 0 if logits.shape == stage.tokens.shape else logits.argmax(axis=-1)
    return np.asarray(found, np.int64)


def _check_forms(generator: Generator) -> Check:
    """Sampled, not greedy: sampling shows differences in the logits that the maximum hides."""
    manifest = generator.bundle.manifest
    scalars = {item.name: None for item in manifest.request if item.kind == "scalar"}
    settings = _with_inputs(stored_settings(manifest), scalars)  # None: the default
    single = generator.generate(**settings)
    streamed = generator.generate(**settings, on_stage=lambda stage: None)
    for what, one, other in (
        ("tokens", single.token_maps, streamed.token_maps),
        ("pictures", single.images, streamed.images),
    ):
        if one.shape != other.shape:
            shapes = f"{list(one.shape)} of generate.onnx, {list(other.shape)} of the stages that the manifest lists"
            return Check("streaming", False, f"{what} differ in shape: {shapes}")
    differing = int((single.token_maps != streamed.token_maps).sum())
    if differing:
        total = single.token_maps.size
        return Check("streaming", False, f"{differing} of {total} tokens of stage.onnx are not those of generate.onnx")
    levels = int(np.abs(single.images.astype(np.int16) - streamed.images).max())
    if levels > 1:
        return Check("streaming", False, f"equal tokens, but pictures differ by up to {levels} of 255 levels")
    return Check("streaming", True, "stage.onnx and decoder.onnx make the tokens and pictures of generate.onnx")
