"""A user's ONNX model in, the integer one and a report out.

normalize -> equalize -> survey -> observe on the samples, plan -> learn the rounding of blocks
-> errors of each operator and their effects -> quantize -> certify -> compare, time
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from nextscale.compiler._rounders import require_reducible
from nextscale.foreign._free_names import free_names
from nextscale.foreign.certificate import Kernels, certify
from nextscale.foreign.compare import Compared, compare, mixes_samples, run_in_turns
from nextscale.foreign.effects import Cost, costs
from nextscale.foreign.equalize import equalize
from nextscale.foreign.learning import BlockLearning
from nextscale.foreign.normalize import normalize
from nextscale.foreign.plan import Plan, make_plan
from nextscale.foreign.reconstruct_blocks import LeftBlock, ReconstructedBlock, reconstruct_blocks
from nextscale.foreign.report import Line, Report, Speed
from nextscale.foreign.running import Running, write_graph
from nextscale.foreign.samples import Given, Samples, graph_inputs, random_samples, read_samples
from nextscale.foreign.suggestion import Suggestion, most_costly, stand_out
from nextscale.foreign.survey import Found, survey
from nextscale.graph_passes.recipe import Recipe, load_recipe
from nextscale.measure.provenance import versions
from nextscale.measure.statistics import Interval, mean_interval, ratio_interval
from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._operators import wanted_library
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._scratch import scratch_folder
from nextscale.runtime._session import SessionOptions, session_settings
from nextscale.runtime._wording import counted, shown_text

DEFAULT_RECIPE = "static-w8a8"
# The integer model's metadata name its recipe.
RECIPE_PROPERTY = "nextscale.recipe"
# Samples on which each operator is asked what it costs.
ASKED = 2


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize, beside the recipe.

    Attributes:
        session: threads and memory; `ops` "fused" takes operators of nextscale-ops where they fit, and the model needs
            their library then.
        reduce_range: keep every pair of integer products within 16 bits, for CPUs without VNNI.
        leave: at most so many linear layers and convolutions stay in float, those that cost the outputs most.
        learning: how recipes with learned rounding reconstruct residual blocks; with 0 iterations each layer is rounded
            by itself.
        rounds: that both models are timed in; 0: they are not.
        seed: of random samples.
        progress: told each step.
    """

    session: SessionOptions = field(default_factory=SessionOptions)
    reduce_range: bool = False
    leave: int = 0
    learning: BlockLearning = field(default_factory=BlockLearning)
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
    if options.reduce_range:
        require_reducible(chosen)
    inputs = graph_inputs(model.graph)
    given = random_samples(inputs, samples, options.seed) if isinstance(samples, int) else read_samples(samples, inputs)
    progress, session = options.progress, options.session
    fused = wanted_library(session.ops, session.ops_library) is not None
    if fused:
        words.append("it needs the operators of nextscale-ops (docs/fused.md)")
    with scratch_folder(Path(tempfile.gettempdir())) as work:
        progress("running the model")
        exact_path = _written(model, work / "model.onnx")
        Running.of(exact_path, session).run(given.feeds[0])
        progress("normalizing")
        normalized = normalize(model)
        float_path = write_graph(normalized.model, work / "float.onnx")
        progress("observing what operators read")
        floats = normalized.model
        free_names(floats)
        if chosen.equalization.alpha:
            floats, evened = equalize(floats, chosen.equalization.alpha, given, work, session)
            words += [f"the channels of {counted(evened, 'input')} of linear layers were evened out"] if evened else []
        plan, found = make_plan(floats, survey(floats), chosen, given, work, session, options.reduce_range)
        words += plan.words
        blocks, others = list[ReconstructedBlock](), list[LeftBlock]()
        if chosen.learned and options.learning.iterations:
            learning = given, work, session, options.learning
            plan, blocks, others = reconstruct_blocks(floats, plan, *learning, progress)
        progress("asking each operator what it loses")
        of_each = costs(floats, plan, given.first(ASKED), work, session)
        effects = {name: cost.effect for name, cost in of_each.items()}
        left = most_costly(effects, plan.can_be_left, options.leave)
        plan = plan.without(left)
        words += [_of_rounding(plan, blocks)] if chosen.learned and plan.integer.layers else []
        words += [f"the layers of block {block.name} were learned each by itself: {block.why}" for block in others]
        leave = stand_out({name: effect for name, effect in effects.items() if name not in left}, plan.can_be_left)
        if len(leave) == len(plan.can_be_left):  # what then is left of the integer model
            leave = ()
        progress("quantizing")
        integer = plan.apply(floats, fused)
        integer.metadata_props[RECIPE_PROPERTY] = chosen.name
        path = write_graph(integer, work / "integer.onnx")
        kernels = certify(path, floats, plan, session)
        paths = {"normal": float_path, "integer": path}
        if leave:
            paths["suggested"] = write_graph(plan.without(leave).apply(floats, fused), work / "suggested.onnx")
        seen = _look(exact_path, paths, given, options)
        words += seen.words
        normal, made = (seen.compared[name] for name in ("normal", "integer"))
        report = Report(
            recipe=chosen.name,
            notes=(*normalized.notes, *words),
            samples=f"{len(given)} of {given.origin}",
            normalized=max((difference.largest for difference in normal.differences.values()), default=0.0),
            lines=tuple(_line(item, plan, left, kernels, of_each.get(item.name)) for item in found.found),
            blocks=tuple(blocks),
            outputs=made.differences,
            not_compared=made.left,
            float_bytes=_bytes(exact_path),
            integer_bytes=_bytes(path),
            speed=seen.speed,
            suggestion=Suggestion(leave, seen.compared["suggested"].differences, seen.suggested) if leave else None,
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
    found.check(f"recipe {found.name}")
    other = f"choose another, such as {DEFAULT_RECIPE}"
    if found.precision == "fp32":
        raise NextscaleError(f"recipe {found.name}: quantizes nothing; {other}")
    words = []
    if found.calibration.matching != "none":
        words.append(f"recipe {found.name}: samples are not resampled")
    if found.activations.granularity == "pair":
        words.append(f'recipe {found.name}: ranges by "pair" are for guided rows; a layer has one for all')
    if found.activations.granularity in ("pair", "stage"):
        found = replace(found, activations=replace(found.activations, granularity="tensor"))
    if found.layers and not own:  # nextscale's own recipes name layers of its models
        found = replace(found, layers={})
    return found, words


def _of_rounding(plan: Plan, blocks: Sequence[ReconstructedBlock]) -> str:
    """How the weights' rounding was learned."""
    left = dict.fromkeys(plan.integer.layers, "layers") | {
        name: block.kept for block in blocks for name in block.layers if name in plan.integer.layers
    }
    layers, whole = Counter(left.values()), sum(block.kept == "block" for block in blocks)
    found = [
        f"{whole} of {counted(len(blocks), 'residual block')} as a whole (BRECQ)" if blocks else "",
        f"{counted(layers['layers'], 'linear layer')} alone (GPTQ)" if layers["layers"] else "",
        f"{counted(layers['nearest'], 'layer')} to nearest, where nothing is better" if layers["nearest"] else "",
    ]
    return f"rounding was learned of {'; '.join(filter(None, found))}"


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


def _line(item: Found, plan: Plan, left: Collection[str], kernels: Mapping[str, Kernels], cost: Cost | None) -> Line:
    integer, refused = plan.integer, item.refused
    alone = (None, None) if cost is None else (cost.error, cost.effect)
    if item.name in left:
        refused = "left in float, as one of those that cost the outputs most"
    elif refused is None and item.name not in kernels:
        refused = f"recipe {plan.recipe.name} leaves it in float"
    if refused is not None:
        return Line(item.name, item.kind, None, refused, (), False, *alone)
    ranges: str | None = None
    if item.name in plan.convolutions:
        ranges = "tensor"
    elif item.name in integer.layers:
        ranges = integer.layers[item.name].granularity
    elif integer.attention is not None:
        ranges = integer.attention.granularity
    of_it = kernels[item.name]
    return Line(item.name, item.kind, ranges, None, of_it.names, of_it.are_integer, *alone)


@dataclass(frozen=True)
class _Seen:
    """What models did beside the original.

    Attributes:
        compared: by name.
        words: a line on what was seen besides.
        speed: of the integer model, and `suggested` of the suggested one over the original; None: not measured.
    """

    compared: Mapping[str, Compared]
    words: Sequence[str]
    speed: Speed | None
    suggested: Interval | None


def _look(exact_path: Path, paths: Mapping[str, Path], samples: Samples, options: QuantizeOptions) -> _Seen:
    """Compare models with the original on the samples, and time them in turns."""
    options.progress("comparing")
    exact = Running.of(exact_path, options.session)
    runnings = {name: Running.of(path, options.session) for name, path in paths.items()}
    compared = dict(zip(runnings, compare(exact, list(runnings.values()), samples), strict=True))
    words = []
    if mixes_samples(exact, runnings["integer"], samples):
        words.append(
            "samples of a batch change each other: ranges of an image take in a whole batch somewhere; run samples "
            'one at a time, or choose a recipe with ranges by "token" or "tensor"'
        )
    if not options.rounds:
        return _Seen(compared, words, None, None)
    options.progress("timing")
    timed = {"float": exact, **{name: running for name, running in runnings.items() if name != "normal"}}
    seconds = run_in_turns(timed, samples.feeds[0], options.rounds)
    ratios = {name: ratio_interval(seconds["float"], seconds[name]) for name in timed if name != "float"}
    of_float, of_integer = (mean_interval(seconds[name]).mean for name in ("float", "integer"))
    speed = Speed(of_float, of_integer, ratios["integer"], options.rounds)
    return _Seen(compared, words, speed, ratios.get("suggested"))


def _bytes(path: Path) -> int:
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
