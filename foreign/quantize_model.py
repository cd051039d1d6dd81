"""A user's ONNX model in, the integer one and a report out.

normalize -> survey -> observe on the samples, plan -> quantize -> certify, compare, time
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from nextscale.foreign._free_names import free_names
from nextscale.foreign.certificate import Kernels, certify
from nextscale.foreign.compare import compare, mixes_samples, run_in_turns
from nextscale.foreign.normalize import normalize
from nextscale.foreign.own_errors import Error, own_errors
from nextscale.foreign.plan import Plan, make_plan
from nextscale.foreign.report import Line, Report, Speed
from nextscale.foreign.running import Running, write_graph
from nextscale.foreign.samples import Given, graph_inputs, random_samples, read_samples
from nextscale.foreign.survey import Found, survey
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.measure.provenance import versions
from nextscale.measure.statistics import mean_interval, ratio_interval
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._scratch import scratch_folder
from nextscale.runtime._session import SessionOptions, session_settings
from nextscale.runtime._wording import shown_text

DEFAULT_RECIPE = "static-w8a8"
# The integer model's metadata name its recipe.
RECIPE_PROPERTY = "nextscale.recipe"


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize, beside the recipe.

    Attributes:
        session: threads and memory.
        rounds: that both models are timed in; 0: they are not.
        seed: of random samples.
        progress: told each step.
    """

    session: SessionOptions = field(default_factory=SessionOptions)
    rounds: int = 5
    seed: int = 0
    progress: Callable[[str], object] = lambda step: None


def quantize(
    model: onnx.ModelProto | ir.Model | Path | str,
    samples: Given | int,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    options: QuantizeOptions | None = None,
) -> tuple[onnx.ModelProto, Report]:
    """As `quantize_model`, of a file or of what `onnx.load` gives, and to what `onnx.save` takes."""
    if isinstance(model, (str, Path)):
        model = read_model(Path(model))
    elif isinstance(model, onnx.ModelProto):
        try:
            model = ir.from_proto(model)
        except ir.serde.SerdeError as error:
            raise NextscaleError(f"the model cannot be taken: {shown_text(str(error.__cause__ or error))}") from None
    integer, report = quantize_model(model, samples, recipe, options)
    return ir.to_proto(integer), report


def read_model(path: Path) -> ir.Model:
    """A model whose weights stay in their files until they are asked for.

    Raises:
        NextscaleError: it cannot be read.
    """
    require_regular(path)
    try:
        model = ir.load(path)
    except FileNotFoundError:
        raise NextscaleError(f"{path}: no such file; expected an ONNX model") from None
    except Exception as error:  # protobuf's and onnx_ir's exceptions have no common base below Exception
        raise NextscaleError(f"{path}: cannot be read as an ONNX model: {shown_text(str(error))}") from None
    if not model.graph.outputs:
        raise NextscaleError(f"{path}: gives no outputs; expected an ONNX model")
    return model


def quantize_model(
    model: ir.Model,
    samples: Given | int,
    recipe: str | Path | Recipe = DEFAULT_RECIPE,
    options: QuantizeOptions | None = None,
) -> tuple[ir.Model, Report]:
    """Make a model integer, as far as it can be.

    Args:
        model: any ONNX model; it is not changed.
        samples: what it is calibrated on (`read_samples`); or how many random ones, whose ranges mean nothing.
        recipe: a name, a file, or a recipe. Its words about stages and guided rows do not apply.
        options: threads, timing, progress.
    Returns:
        The integer model, and what became of each operator.
    Raises:
        NextscaleError: the model or a sample cannot be read or run, or the recipe is none for such a model.
    """
    options = options or QuantizeOptions()
    chosen, words = foreign_recipe(recipe)
    inputs = graph_inputs(model.graph)
    given = random_samples(inputs, samples, options.seed) if isinstance(samples, int) else read_samples(samples, inputs)
    progress, session = options.progress, options.session
    with scratch_folder(Path(tempfile.gettempdir())) as work:
        progress("running the model")
        exact_path = _written(model, work / "model.onnx")
        Running.of(exact_path, session).run(given.feeds[0])
        progress("normalizing")
        normalized = normalize(model)
        float_path = write_graph(normalized.model, work / "float.onnx")
        progress("observing what operators read")
        free_names(normalized.model)
        plan, found = make_plan(normalized.model, survey(normalized.model), chosen, given, work, session)
        words += plan.words
        progress("quantizing")
        integer = plan.apply(normalized.model)
        integer.metadata_props[RECIPE_PROPERTY] = chosen.name
        path = write_graph(integer, work / "integer.onnx")
        kernels = certify(path, normalized.model, plan.integer, session)
        progress("comparing")
        errors = own_errors(normalized.model, plan, given, work, session)
        exact, normal, made = (Running.of(item, session) for item in (exact_path, float_path, path))
        off, lost = compare(exact, [normal, made], given)
        if mixes_samples(exact, made, given):
            words.append(
                "samples of a batch change each other: ranges of an image take in a whole batch somewhere; run samples "
                'one at a time, or choose a recipe with ranges by "token" or "tensor"'
            )
        speed = None
        if options.rounds:
            progress("timing")
            speed = _speed(run_in_turns({"float": exact, "integer": made}, given.feeds[0], options.rounds))
        report = Report(
            recipe=chosen.name,
            notes=(*normalized.notes, *words),
            samples=f"{len(given)} of {given.origin}",
            normalized=max((difference.largest for difference in off.differences.values()), default=0.0),
            lines=tuple(_line(item, plan, kernels, errors) for item in found.found),
            outputs=lost.differences,
            not_compared=lost.left,
            float_bytes=_bytes(exact_path),
            integer_bytes=_bytes(path),
            speed=speed,
            threads=session_settings(session).intra_op_num_threads,
            machine=describe_machine().cpu,
            versions=versions(),
        )
        # Its weights may lie in the folder.
        ir.external_data.load_to_model(integer)
        return integer, report


def foreign_recipe(recipe: str | Path | Recipe) -> tuple[Recipe, list[str]]:
    """The recipe for a model without stages and guided rows, and a line on each word that does not apply.

    Raises:
        NextscaleError: there is none of that name, it quantizes nothing, or it asks for what such models do not have.
    """
    own = isinstance(recipe, Recipe) or str(recipe).endswith(".toml")
    found = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    other = f"choose another, such as {DEFAULT_RECIPE}"
    if found.precision == "fp32":
        raise NextscaleError(f"recipe {found.name}: quantizes nothing; {other}")
    words = []
    if found.learned:
        words.append(f"recipe {found.name}: rounding is learned layer by layer (GPTQ), not block by block")
    if found.calibration.matching != "none":
        words.append(f"recipe {found.name}: samples are not resampled")
    if found.activations.granularity == "pair":
        words.append(f'recipe {found.name}: ranges by "pair" are for guided rows; a layer has one for all')
    if found.activations.granularity in ("pair", "stage"):
        found = replace(found, activations=replace(found.activations, granularity="tensor"))
    if found.equalization.alpha:
        words.append(f"recipe {found.name}: channels are not equalized")
    if found.layers and not own:  # nextscale's own recipes name layers of its models
        found = replace(found, layers={})
    return found, words


def _written(model: ir.Model, path: Path) -> Path:
    """The model as a file of the work folder.

    Raises:
        NextscaleError: its weights cannot be read, or the folder not be written.
    """
    try:
        return write_graph(model, path)
    except (OSError, ValueError) as error:
        raise NextscaleError(
            f"the model's weights cannot be read, or {path.parent} not be written: {shown_text(str(error))}"
        ) from None


def _line(item: Found, plan: Plan, kernels: Mapping[str, Kernels], errors: Mapping[str, Error]) -> Line:
    integer, refused = plan.integer, item.refused
    if refused is None and item.name not in kernels:
        refused = f"recipe {plan.recipe.name} leaves it in float"
    if refused is not None:
        return Line(item.name, item.kind, refused=refused)
    ranges = integer.layers[item.name].granularity if item.name in integer.layers else None
    if ranges is None and integer.attention is not None:
        ranges = integer.attention.granularity
    of_it = kernels[item.name]
    return Line(item.name, item.kind, ranges, None, of_it.names, of_it.are_integer, errors.get(item.name))


def _speed(seconds: Mapping[str, list[float]]) -> Speed:
    floats, integers = seconds["float"], seconds["integer"]
    ratio = ratio_interval(floats, integers)
    return Speed(mean_interval(floats).mean, mean_interval(integers).mean, ratio, len(floats))


def _bytes(path: Path) -> int:
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
