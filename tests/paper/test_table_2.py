"""Table 2 on a tiny Infinity: full precision, a model of shifted log-odds, and full precision by another name."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_judge import write_judge
from infinity_bundle import SIZES, tiny_infinity_source
from numpy.typing import NDArray
from PIL import Image
from tiny_model import ONE_THREAD, no_progress, tiny_options

from nextscale.calib_data.text_subjects import text_subjects
from nextscale.compiler.build import build_bundle
from nextscale.evaluate.concept_judge import ConceptJudge
from nextscale.evaluate.prompt_scores import PromptScore
from nextscale.graph_passes.recipe import load_recipe
from nextscale.paper import _prompted_pictures, table_2
from nextscale.paper._geneval import SAMPLES, GenEval
from nextscale.paper._prompted_pictures import (
    RECOGNISED,
    Asked,
    Drawing,
    Measures,
    picture_results,
    read_asked,
    spread,
)
from nextscale.paper._rows import NOISE_FLOOR
from nextscale.paper._table_2_page import markdown
from nextscale.paper.recipe_bundles import RecipeBundle
from nextscale.paper.table_2 import PAPER, ROWS, Comparing, Table2, figures_of, jobs, measure_table_2
from nextscale.runtime import Bundle, Generator
from nextscale.runtime._errors import NextscaleError, OutputError
from nextscale.runtime._next_scale_loop import features_of_prompts

STAGES, BITS = SIZES[1].num_stages, 8
DRAWING = Drawing(seed=3, cfg_scale=2.0, tau=0.8, top_p=0.6, batch_size=2)  # of which none is the bundles' own
COMPARING = Comparing(images=3, attention_images=0)
ASKED = [
    Asked("fox", "one", (("rose", "whole"),)),
    Asked("a", "one", (("sky", "whole"),)),
    Asked("two dogs", "two", (("leaf", "left"), ("sky", "right"))),
    Asked("fog", "two", (("poppy", "left"),)),
    Asked("no more", "two"),
]


class MeanColours:
    """Three features: the means of the channels. They can interrupt what goes on."""

    name = "mean colours"

    def __init__(self, most: int | None = None) -> None:
        self.most, self.seen = most, 0

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.most is not None and self.seen + len(images) > self.most:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.mean((1, 2)).astype(np.float32)


class Length:
    """A score: the length of the prompt, and how red the picture is."""

    name = "length"

    def __call__(self, images: NDArray[np.uint8], prompts: list[str]) -> NDArray[np.float64]:
        return np.array([len(text) + image[..., 0].mean() for image, text in zip(images, prompts, strict=True)])


def renamed(folder: Path, name: str, bits: int) -> RecipeBundle:
    """The bundle, which then says that it is a recipe's."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"] = {
        "name": name,
        "weights": {"bits": bits},
        "activations": {"bits": bits},
        "calibration": {"images": 64},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return RecipeBundle(name, Bundle.open(folder))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[RecipeBundle]:
    folder, source = tmp_path_factory.mktemp("rows"), replace(tiny_infinity_source(), sizes=(SIZES[1],))
    options = tiny_options("fp32", encoder=False)
    original = build_bundle(source, folder / "fp32", options, no_progress)
    shutil.copytree(folder / "fp32", folder / "default")
    with torch.no_grad():
        source.infinity.head.bias += 0.3  # type: ignore[operator]
    build_bundle(source, folder / "brecq-w4a4", options, no_progress)
    rows = [renamed(folder / "brecq-w4a4", "brecq-w4a4", 4), renamed(folder / "default", "default", 8)]
    return [RecipeBundle("fp32", original), *rows]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> ConceptJudge:
    return ConceptJudge(write_judge(tmp_path_factory.mktemp("judge") / "judge.onnx"), threads=1)


def measured(bundles: list[RecipeBundle], measures: Measures, work: Path, **further: object) -> Table2:
    arguments = (ASKED, measures, DRAWING, COMPARING, work)
    return measure_table_2(bundles, *arguments, options=ONE_THREAD, **further)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def table(bundles: list[RecipeBundle], judge: ConceptJudge, tmp_path_factory: pytest.TempPathFactory) -> Table2:
    scores: dict[str, PromptScore] = {"ImageReward": Length()}
    measures = Measures(MeanColours(), judge, scores)
    return measured(bundles, measures, tmp_path_factory.mktemp("work"), left_out=["ours: no rounding"])


def drawn(bundle: RecipeBundle, seed: int = DRAWING.seed) -> NDArray[np.uint8]:
    prompts = [item.prompt for item in ASKED]
    return Generator(bundle.bundle, ONE_THREAD).generate(prompts=prompts, **DRAWING.settings(seed)).images


def test_figures_are_those_of_the_pictures(table: Table2, bundles: list[RecipeBundle], judge: ConceptJudge) -> None:
    assert [row.name for row in table.rows] == ["fp32", NOISE_FLOOR, "brecq-w4a4", "default"]
    for row, bundle, seed in zip(table.rows, [bundles[0], *bundles], (3, 4, 3, 3), strict=True):
        images = drawn(bundle, seed)
        seen = judge.recognised(images, [item.objects for item in ASKED])
        expected = {
            f"{RECOGNISED}, one": seen[:2].mean(),
            f"{RECOGNISED}, two": seen[2:4].mean(),  # nothing is asked of the last
            "ImageReward": Length()(images, [item.prompt for item in ASKED]).mean(),
        }
        assert list(row.figures) == list(expected)
        for column, value in expected.items():
            interval = row.figures[column]
            assert interval is not None
            assert interval.mean == pytest.approx(value)
    assert table.prompts == {"one": 2, "two": 3}
    assert table.measures == {"features": "mean colours", RECOGNISED: judge.name, "ImageReward": "length"}


def test_differences_are_paired(table: Table2) -> None:
    original = table.rows[0].figures["ImageReward"]
    assert table.rows[0].differences == {}
    for row in table.rows[1:]:
        difference, mine = row.differences["ImageReward"], row.figures["ImageReward"]
        assert difference is not None
        assert mine is not None
        assert original is not None
        assert difference.mean == pytest.approx(mine.mean - original.mean, abs=1e-9)
    same = table.rows[3].differences["ImageReward"]
    assert same is not None
    assert (same.low, same.high) == (0, 0)


def test_the_frechet_distance_is_that_of_three_dimensions(table: Table2, bundles: list[RecipeBundle]) -> None:
    """Of the eigenvalues of the product of the covariances, which are few enough to be exact."""
    first, second = (drawn(bundle).mean((1, 2)) for bundle in bundles[:2])
    covariances = [np.cov(x.T) for x in (first, second)]
    shared = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    expected = np.square(first.mean(0) - second.mean(0)).sum() + sum(map(np.trace, covariances)) - 2 * shared
    full, floor, shifted, same = table.rows
    assert shifted.frechet == pytest.approx(expected, rel=1e-3)  # features are of float32
    assert (full.frechet, same.frechet) == (None, pytest.approx(0, abs=1e-3))
    assert floor.frechet is not None
    assert floor.frechet > 0.1


def test_nearness_is_that_of_the_log_odds(table: Table2, bundles: list[RecipeBundle]) -> None:
    """0.3 more on each log-odds, of both rows, so that it is 0.3 after guidance, too."""
    full, floor, shifted, same = (row.nearness for row in table.rows)
    assert full is None
    assert floor is None
    assert same is not None
    assert (same.kl, same.bits_equal, same.stage_kl, same.stage_bits_equal) == (0, 1, (0,) * STAGES, (1,) * STAGES)
    assert shifted is not None
    assert (shifted.images, len(shifted.stage_kl), len(shifted.stage_bits_equal)) == (3, STAGES, STAGES)
    reference, prompts = Generator(bundles[0].bundle, ONE_THREAD), [item.prompt for item in ASKED]
    subjects, _ = text_subjects(reference, prompts, COMPARING.images, COMPARING.seed)
    kl, equal = np.zeros((COMPARING.images, STAGES)), np.zeros((COMPARING.images, STAGES))
    for image in range(COMPARING.images):
        settings = subjects[image : image + 1].settings(reference.bundle.manifest)
        settings |= {"first_image": image, **DRAWING.settings(COMPARING.seed)}
        for stage in reference.stream(**settings, outputs=["logits"]):
            log_odds = stage.outputs["logits"].astype(np.float64)
            p, q = 1 / (1 + np.exp(-log_odds)), 1 / (1 + np.exp(-log_odds - 0.3))
            kl[image, stage.stage] = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
            equal[image, stage.stage] = ((p > 0.5) == (q > 0.5)).mean()
    tokens = [height * width for height, width in SIZES[1].stage_sizes]
    assert shifted.stage_kl == pytest.approx(kl.mean(0), rel=1e-4)
    assert shifted.stage_bits_equal == pytest.approx(equal.mean(0), abs=1e-9)
    by_image = np.average(kl, axis=1, weights=tokens)
    assert shifted.kl == pytest.approx(by_image.mean(), rel=1e-4)
    assert shifted.kl_stderr == pytest.approx(by_image.std(ddof=1) / 3**0.5, rel=1e-3)
    assert shifted.bits_equal == pytest.approx(np.average(equal.mean(0), weights=tokens), abs=1e-9)


def test_the_page_says_what_was_measured(table: Table2) -> None:
    page = markdown(table)
    for text in (
        "| BRECQ | 4/4 |",
        "0.346 | 27.92 | 0.563 |",
        "Full precision, another seed",
        "FD-VGG16 to full precision",
        "no FID",
        "no published metric",
        "## Bits equal by stage",
        "in float",
        "which are not the paper's",
        "our reading of the paper's Eq. 17 to 20",
        "- left out: ours: no rounding",
        "2 one, 3 two",
    ):
        assert text in page, text
    assert "| FID" not in page
    assert "## Error of A V by stage" not in page
    plain = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert plain["rows"][2]["paper"] == {"image_reward": 0.346, "hps": 27.92, "geneval": 0.563}
    assert plain["model"] == {"name": "tiny", "image_size": [32, 32], "token_bits": BITS, "num_stages": STAGES}


# Going on


def test_an_interrupted_table_goes_on(bundles: list[RecipeBundle], judge: ConceptJudge, tmp_path: Path) -> None:
    pair = [bundles[0], bundles[2]]
    work, whole = tmp_path / "work", tmp_path / "whole"
    work.mkdir()
    whole.mkdir()
    expected = measured(pair, Measures(MeanColours(), judge), whole)
    with pytest.raises(KeyboardInterrupt):
        measured(pair, Measures(MeanColours(most=5 + 2), judge), work)
    features, sampled = MeanColours(), list[str]()

    def counted(what: str, done: int, total: int) -> None:
        sampled.append(what)

    found = measured(pair, Measures(features, judge), work, on_images=counted)
    assert features.seen == 3 + 5  # of the noise floor, and of default
    assert found.rows == expected.rows
    assert "default: comparing bits" in sampled

    again, sampled[:] = MeanColours(), []
    assert measured(pair, Measures(again, judge), work, on_images=counted).rows == expected.rows
    assert again.seen == 0
    assert not any("comparing" in what or "sampling" in what for what in sampled)


def test_other_prompts_begin_again_and_more_go_on(bundles: list[RecipeBundle], tmp_path: Path) -> None:
    generator, features = Generator(bundles[0].bundle, ONE_THREAD), MeanColours()

    def drawn_of(asked: list[Asked]) -> int:
        before = features.seen
        found = picture_results(generator, asked, Measures(features), DRAWING, tmp_path)
        assert len(found) == len(asked)
        return features.seen - before

    assert drawn_of(ASKED[:3]) == 3
    assert drawn_of(ASKED) == 2
    assert drawn_of(ASKED[:2]) == 0
    assert drawn_of([replace(ASKED[0], prompt="ox"), *ASKED[1:]]) == 5


def test_damaged_files_are_one_line(bundles: list[RecipeBundle], tmp_path: Path) -> None:
    pair = [bundles[0], bundles[2]]
    measured(pair, Measures(MeanColours()), tmp_path)
    (nearness,) = tmp_path.glob("*-nearness.json")
    nearness.write_text("{")
    with pytest.raises(NextscaleError, match=r"nearness\.json: damaged; delete the file"):
        measured(pair, Measures(MeanColours()), tmp_path)
    nearness.write_text("[1]")
    with pytest.raises(NextscaleError, match=r"nearness\.json: damaged; delete the file"):
        measured(pair, Measures(MeanColours()), tmp_path)
    nearness.unlink()
    pictures = next(tmp_path.glob("*-seed3.npz"))
    for arrays in ({"features": np.zeros((2, 3))}, {"features": np.array(3.0), "prompts": np.zeros(1, np.uint64)}):
        np.savez(pictures, **arrays)
        with pytest.raises(NextscaleError, match=r"seed3\.npz: damaged; delete the file"):
            measured(pair, Measures(MeanColours()), tmp_path)


def test_bits_are_compared_as_pictures_are_drawn(bundles: list[RecipeBundle], tmp_path: Path) -> None:
    """Settings that are others' do not find the figures of these."""
    found = []
    for drawing in (DRAWING, replace(DRAWING, tau=0.3), replace(DRAWING, top_p=1.0)):
        table = measure_table_2(
            bundles[:2], ASKED, Measures(MeanColours()), drawing, COMPARING, tmp_path, options=ONE_THREAD
        )
        assert table.rows[2].nearness is not None
        found.append(table.rows[2].nearness.kl)
    assert len(set(found)) == 3


def test_the_text_encoder_is_loaded_once_for_all_prompts(
    bundles: list[RecipeBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def counted(generator: Generator, prompts: list[str]) -> list[NDArray[np.float32]]:
        asked.append(len(prompts))
        return features_of_prompts(generator, prompts)

    monkeypatch.setattr(_prompted_pictures, "features_of_prompts", counted)
    picture_results(Generator(bundles[0].bundle, ONE_THREAD), ASKED, Measures(MeanColours()), DRAWING, tmp_path)
    assert asked == [len(ASKED)]


# What is refused


def test_rows_that_do_not_go_together_are_refused(
    bundles: list[RecipeBundle], judge: ConceptJudge, tmp_path: Path
) -> None:
    with pytest.raises(NextscaleError, match=r"rows: 0 of full precision \(fp32\); expected 1"):
        jobs(bundles[1:], DRAWING)
    source = replace(tiny_infinity_source(), sizes=tuple(SIZES[1:]))
    two = build_bundle(source, tmp_path / "two", tiny_options("fp32", encoder=False), no_progress)
    with pytest.raises(NextscaleError, match=r"two: not the model of .+fp32; compare bundles of one model"):
        jobs([bundles[0], RecipeBundle("default", two)], DRAWING)
    with pytest.raises(NextscaleError, match="two: built for 2 sizes; Table 2 is of one"):
        jobs([RecipeBundle("fp32", two)], DRAWING)
    measures = Measures(MeanColours(), judge)
    with pytest.raises(NextscaleError, match="1 prompt: expected at least 2"):
        measure_table_2(bundles, ASKED[:1], measures, DRAWING, COMPARING, tmp_path)
    unknown = [ASKED[0], Asked("a cat", objects=(("cat", "whole"),))]
    with pytest.raises(NextscaleError, match="prompt 2: concept 'cat' is unknown to colours"):
        measure_table_2(bundles, unknown, measures, DRAWING, COMPARING, tmp_path)


def test_attention_that_is_too_large_is_left_out(
    bundles: list[RecipeBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_2, "MOST_OBSERVED", 1)
    comparing = replace(COMPARING, attention_images=2)
    table = measure_table_2(
        bundles[:1], ASKED, Measures(MeanColours()), DRAWING, comparing, tmp_path, options=ONE_THREAD
    )
    assert table.left_out == ("error of A V: observing it takes 0 GB at this size of pictures",)


# Prompts


def test_every_row_is_a_recipe_and_every_row_of_the_paper_is_there() -> None:
    assert set(PAPER) <= set(ROWS)
    assert len(PAPER) == 1 + 4 * 4
    assert [load_recipe(name).name for name in ROWS] == [*ROWS]


def test_prompts_are_spread_over_the_file() -> None:
    asked = [Asked(str(i)) for i in range(10)]
    assert [int(item.prompt) for item in spread(asked, 4)] == [0, 2, 5, 7]
    assert spread(asked, 10) == spread(asked, 99) == asked


def test_the_demos_prompts_are_read() -> None:
    found, settings = read_asked(Path(_prompted_pictures.__file__).parents[1] / "demo" / "emoji" / "prompts.json")
    assert settings == {"seed": 0, "cfg_scale": 4.0, "tau": 0.5, "top_p": 0.0}
    assert {item.kind for item in found} == {"seen", "held-out", "colour", "two"}
    assert found[0] == Asked("glossy pretzel on a white background", "seen", (("pretzel", "whole"),))
    assert all(len(item.objects) == (2 if item.kind == "two" else 1) for item in found)


DAMAGED = {
    "no JSON": "{",
    "a list": "[]",
    "no prompts": '{"prompts": []}',
    "no prompt": '{"prompts": [{"kind": "a"}]}',
    "a number": '{"prompts": [{"prompt": 3}]}',
    "an object alone": '{"prompts": [{"prompt": "a", "objects": ["apple"]}]}',
    "a setting that is no number": '{"prompts": [{"prompt": "a"}], "settings": {"tau": "warm"}}',
    "settings that are none": '{"prompts": [{"prompt": "a"}], "settings": 3}',
    "a window that is no text": '{"prompts": [{"prompt": "a", "objects": [["apple", 3]]}]}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_files_that_are_no_prompts_are_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(NextscaleError, match=r"p\.json: no prompts; expected JSON such as"):
        read_asked(tmp_path / "p.json")


def test_columns_are_by_kind_where_there_are_several() -> None:
    results = {RECOGNISED: np.array([1.0, 0, np.nan]), "HPSv2.1": np.array([1.0, 2, 3])}
    assert {key: values.tolist() for key, values in figures_of({"HPSv2.1": results["HPSv2.1"]}, "aba").items()} == {
        "HPSv2.1": [1, 2, 3]
    }
    found = figures_of(results, ["a", "", "a"])
    np.testing.assert_array_equal(found[f"{RECOGNISED}, a"], [1, np.nan])
    assert found[f"{RECOGNISED}, other"].tolist() == [0]
    assert list(figures_of(results, ["a", "a", "a"])) == [RECOGNISED, "HPSv2.1"]


UNFIT = {
    "a blank prompt": ({"prompt": " "}, r"prompt 2, ' ': expected words of valid Unicode"),
    "half a character": ({"prompt": "a \ud83d"}, "prompt 2, 'a .+': expected words of valid Unicode"),
    "a column's end": ({"prompt": "a", "kind": "a|b"}, r"kind 'a\|b' of prompt 2: expected printable text without \|"),
    "two lines": ({"prompt": "a", "kind": "a\nb"}, "kind '.+' of prompt 2: expected printable text"),
}


@pytest.mark.parametrize(("item", "message"), UNFIT.values(), ids=UNFIT.keys())
def test_prompts_that_cannot_be_drawn_or_told_are_one_line(item: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"prompts": [{"prompt": "fox"}, item]}))
    with pytest.raises(NextscaleError, match=rf"p\.json: {message}[^\n]*$"):
        read_asked(tmp_path / "p.json")


# GenEval


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder as GenEval's repository, with two prompts of two tasks."""
    folder = tmp_path / "geneval" / "prompts"
    folder.mkdir(parents=True)
    lines = [
        {"tag": tag, "include": [{"class": text, "count": 1}], "prompt": text}
        for tag, text in (("one", "fox"), ("two", "dog"))
    ]
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder.parent


def test_geneval_gets_its_pictures_and_gives_its_score(
    bundles: list[RecipeBundle], checkout: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    geneval = GenEval(checkout, tmp_path / "pictures")
    table = measured(bundles[:1], Measures(MeanColours()), work, geneval=geneval)
    assert table.rows[0].geneval is None
    (line,) = table.left_out
    assert re.fullmatch(
        r"GenEval of fp32: run `python \S+evaluate_images\.py \S+/fp32 .+`, and this command again", line
    )
    folder = tmp_path / "pictures" / "fp32"
    generator = Generator(bundles[0].bundle, ONE_THREAD)
    expected = generator.generate(prompts=["dog"] * SAMPLES, first_image=SAMPLES, **DRAWING.settings()).images
    for k in range(SAMPLES):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "00001" / "samples" / f"{k:05}.png")), expected[k])
    assert json.loads((folder / "00001" / "metadata.jsonl").read_text())["prompt"] == "dog"
    samples = sorted(path.name for path in (folder / "00001" / "samples").iterdir())
    assert samples == [f"{k:05}.png" for k in range(SAMPLES)]
    # Three of four pictures of one task are right, and one of the other.
    lines = [{"tag": tag, "correct": k < right} for tag, right in (("one", 3), ("two", 1)) for k in range(SAMPLES)]
    results = folder / "results.jsonl"
    assert f"--outfile {results} " in line
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = measured(bundles[:1], Measures(MeanColours()), work, geneval=geneval)
    assert found.rows[0].geneval == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert "| GenEval |" in markdown(found)

    results.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    with pytest.raises(NextscaleError, match=r"results of 7 pictures, expected 8; run GenEval again"):
        measured(bundles[:1], Measures(MeanColours()), work, geneval=geneval)
    for damaged in ({"tag": "one"}, {"tag": ["one"], "correct": True}, {"tag": "one", "correct": "False"}):
        results.write_text(json.dumps(damaged) + "\n")
        with pytest.raises(NextscaleError, match=r"no results of GenEval"):
            measured(bundles[:1], Measures(MeanColours()), work, geneval=geneval)
    with pytest.raises(NextscaleError, match=r"fp32: has pictures of another bundle or of other settings; remove it"):
        geneval.score("fp32", Generator(bundles[1].bundle, ONE_THREAD), DRAWING, lambda what, done, total: None)

    # Without what tells which pictures they are of, results are not read.
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "settings.json").unlink()
    with pytest.raises(NextscaleError, match=r"fp32: holds files, and no settings\.json; remove it"):
        measured(bundles[:1], Measures(MeanColours()), work, geneval=geneval)
    # Pictures that are drawn again have no score yet.
    shutil.rmtree(folder)
    assert measured(bundles[:1], Measures(MeanColours()), work, geneval=geneval).rows[0].geneval is None


def test_a_folder_that_is_not_genevals_is_one_line(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(NextscaleError, match=r"give --geneval the folder of GenEval's repository"):
        GenEval(tmp_path, tmp_path / "w").prompts()
    (checkout / "prompts" / "evaluation_metadata.jsonl").write_text('{"tag": "one"}\n')
    with pytest.raises(NextscaleError, match='expected a JSON object with a "prompt" on each line'):
        GenEval(checkout, tmp_path / "w").prompts()
    (checkout / "prompts" / "evaluation_metadata.jsonl").write_text("[]\n")
    with pytest.raises(NextscaleError, match="damaged, or no JSON objects"):
        GenEval(checkout, tmp_path / "w").prompts()


def test_geneval_where_no_folder_can_be_made_is_one_line(
    bundles: list[RecipeBundle], checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(OutputError, match=r"^cannot make \S+/pictures/fp32: Not a directory$"):
        measured(bundles[:1], Measures(MeanColours()), tmp_path, geneval=GenEval(checkout, tmp_path / "pictures"))
