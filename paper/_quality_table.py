"""Tables 1 and 4 alike: the figures of `measure_quality`, the paper's beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from nextscale.evaluate.image_statistics import ImageNetwork
from nextscale.graph_passes.recipe import Recipe
from nextscale.measure.provenance import versions
from nextscale.paper._depths import require_depth
from nextscale.paper._quality import Asked, Quality
from nextscale.paper._rows import bits_of, method_of
from nextscale.paper.paper_table import Cell, Column, PaperTable, Row
from nextscale.paper.recipe_bundles import RecipeBundle, model_name
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._manifest import ModelInfo
from nextscale.runtime._request import resolve_top_k
from nextscale.runtime._wording import counted

# The paper's model that the demo model, of another size and of other pictures, is shown beside.
BESIDE_DEMO = 16


class PaperRow(NamedTuple):
    """IS, FID, and FID to full precision (FID2FP16), which full precision has none of."""

    inception_score: float
    fid: float
    fid_to_full_precision: float | None = None


@dataclass(frozen=True)
class QualityTable:
    """What the paper has in a table.

    Attributes:
        table, title: its number, and what it is of.
        rows: names of the recipes, full precision first.
        methods: what the paper calls some of them.
        paper: figures by depth of VAR, and by recipe.
    """

    table: str
    title: str
    rows: tuple[str, ...]
    methods: Mapping[str, str]
    paper: Mapping[int, Mapping[str, PaperRow]]

    def depth(self, model: ModelInfo, is_demo: bool) -> int:
        """Which of the paper's models a model is shown beside.

        Raises:
            NextscaleError: it is none of the table's sizes.
        """
        if is_demo:
            return BESIDE_DEMO
        require_depth(self.table, tuple(self.paper), model)
        return model.depth

    def method(self, name: str) -> str:
        """What a row is called."""
        return self.methods.get(name) or method_of(name)


@dataclass(frozen=True)
class Subject:
    """What was measured.

    Attributes:
        name: the model's.
        model: its shape.
        bits: of weights and activations, by recipe.
    """

    name: str
    model: ModelInfo
    bits: Mapping[str, str]

    @classmethod
    def of_bundles(cls, bundles: Sequence[RecipeBundle]) -> Subject:
        """Full precision first."""
        bits = {item.name: bits_of(item.bundle.manifest.recipe) for item in bundles}
        return cls(model_name(bundles[0].bundle), bundles[0].bundle.model, bits)

    @classmethod
    def of_recipes(cls, name: str, model: ModelInfo, recipes: Sequence[Recipe]) -> Subject:
        """Of what is not built."""
        return cls(name, model, {recipe.name: bits_of(recipe.as_dict()) for recipe in recipes})


def quality_table(
    of: QualityTable,
    measured: Sequence[Quality],
    subject: Subject,
    network: ImageNetwork,
    asked: Asked,
    depth: int,
    *,
    reference: str | None,
    left_out: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> PaperTable:
    """The figures beside the paper's.

    Args:
        of: the paper's.
        measured: full precision, the noise floor, and the others (`measure_quality`).
        subject: what was measured.
        network: of features.
        asked: how much.
        depth: of the paper's model beside it (`QualityTable.depth`).
        reference: what real pictures were; None: none.
        left_out: lines on rows that are missing.
        notes: further ones.
    """
    paper, fid = of.paper[depth], network.metrics[0]
    rows = []
    for item in measured:
        told = paper.get(item.name)
        rows.append(Row(item.name, of.method(item.name), subject.bits.get(item.name, "32/32"), _cells(item, told)))
    return PaperTable(
        table=of.table,
        title=of.title,
        model=subject.name,
        columns=columns(network),
        rows=tuple(rows),
        notes=(
            f"{asked.images} pictures of each row and of each of {counted(len(asked.seeds), 'seed')}, spread over the "
            f"classes; {network.name}",
            *_of_names(network),
            f"{fid} is to {reference}; {fid} to full precision to its pictures of the same classes and seeds"
            if reference
            else f"no {fid}: no statistics of real pictures; {fid} to full precision is to its pictures of the same "
            "classes and seeds",
            f"{fid} falls with the number of pictures: compare equal numbers. Another seed of full precision shows how "
            "far apart rows are by chance alone",
            f"KL, nats per token, and tokens equal: fed {asked.compared} token maps that full precision samples"
            if asked.compared
            else "no KL: --compared 0",
            _interval_note(asked, network.metrics[1]),
            f"beside the paper's VAR-d{depth}"
            + ("" if subject.model.depth == depth else ", another model: compare differences between rows, not values"),
            *notes,
        ),
        left_out=tuple(left_out),
        warnings=tuple(item.warning for item in measured if item.warning is not None),
        settings=asdict(asked)
        | {
            "top_k": resolve_top_k(asked.sampling.top_k, subject.model),
            "network": network.name,
            "reference": reference,
        },
        machine=describe_machine(),
        versions=versions(),
    )


def columns(network: ImageNetwork) -> tuple[Column, ...]:
    """Of `quality_table`'s cells; the paper's beside the first three."""
    fid, score = network.metrics
    return (
        Column(score, "IS", 1),
        Column(fid, "FID"),
        Column(f"{fid} to full precision", "FID2FP16"),
        Column("KL", digits=4),
        Column("tokens equal, %", digits=2, scale=100),
    )


def _cells(item: Quality, paper: PaperRow | None) -> tuple[Cell, ...]:
    score, fid, to_full = paper or (None, None, None)
    near = item.nearness
    return (
        Cell.of(item.score(), score),
        Cell.of(item.metrics.interval("fid"), fid),
        Cell.of(item.metrics.interval("fid_to_full_precision"), to_full),
        Cell() if near is None else Cell.of(near.kl),
        Cell() if near is None else Cell(near.top1),
    )


def _of_names(network: ImageNetwork) -> list[str]:
    fid, score = network.metrics
    if (fid, score) == ("FID", "IS"):
        return []
    return [
        f"{score} and {fid} are of another network, or other weights, than IS and FID, and cannot be compared with the "
        "paper's"
    ]


def _interval_note(asked: Asked, score: str) -> str:
    spread = (
        "over seeds"
        if len(asked.seeds) > 1
        else f"of {score} and KL over pictures; other figures of one seed have none"
    )
    return f"± half of the 95% interval, {spread}"
