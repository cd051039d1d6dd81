"""The judge's graph says what the judge in torch says, and names what it knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from nextscale.demo.emoji.configuration import TINY
from nextscale.demo.emoji.evaluate import real, recognised
from nextscale.demo.emoji.judge import SIDE, WINDOWS, Judge, cut
from nextscale.demo.emoji.judge_graph import main
from nextscale.demo.emoji.prompts import Prompt
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.weights import JUDGE, save_module
from nextscale.evaluate.concept_judge import ConceptJudge
from nextscale.runtime._errors import NextscaleError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge(sprites: Sprites) -> Judge:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        judge = Judge(int(sprites.looks.max()) + 1)
        torch.nn.init.normal_(judge.looks.weight, std=20)  # so that it sees different things
    for parameter in judge.parameters():  # as saved
        parameter.data = parameter.detach().half().float()
    return judge.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def exported(judge: Judge, data: Path, tmp_path_factory: pytest.TempPathFactory) -> ConceptJudge:
    folder = tmp_path_factory.mktemp("judge")
    save_module(judge, folder / JUDGE, step=0)
    out = folder / "judge.onnx"
    result = CliRunner().invoke(main, ["--data", str(data), "--run", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return ConceptJudge(out, threads=1)


def test_logits_are_the_judges(judge: Judge, exported: ConceptJudge) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (len(WINDOWS), 96, 160, 3), np.uint8)
    windows = np.array([*WINDOWS.values()], np.float32)
    (found,) = exported._session.run(None, {"pictures": pixels, "windows": windows})
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected, _ = judge(cut(pictures, torch.from_numpy(windows)))
    # Samples of order 1 at float32 coordinates of up to 2 SIDE pixels, through layers that keep their size to `looks`.
    size = judge.looks.weight.abs().sum(1).max().item()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=size * 2 * SIDE * 2**-23)
    assert expected.std() > 1e-2


def test_what_is_recognised_is_the_same(judge: Judge, exported: ConceptJudge, sprites: Sprites) -> None:
    names = [e.name for e in sprites.emoji]
    prompts = [Prompt("seen", name, "flat", "white", ((name, "whole"),)) for name in names[1:]]
    pixels = real(sprites, prompts, CPU, None, TINY)
    looks, _ = recognised(judge, pixels, ["whole"] * len(prompts))
    for name, look in zip(names, sprites.looks, strict=True):
        asked = [[(name, "whole")]] * len(prompts)
        assert exported.recognised(pixels, asked).tolist() == (looks == int(look)).tolist()


def test_it_knows_the_concepts(exported: ConceptJudge, sprites: Sprites) -> None:
    exported.require([[(e.name, window) for window in WINDOWS] for e in sprites.emoji])
    with pytest.raises(NextscaleError, match="concept 'unicorn' is unknown to emoji judge"):
        exported.require([[("unicorn", "whole")]])
