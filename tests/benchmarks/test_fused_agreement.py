"""The control of benchmarks/fused_agreement.py, and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_model import ONE_THREAD

from nextscale.evaluate.teacher_forced import ByImage, teacher_forced_pairs
from nextscale.runtime import Bundle, Generator

Program = Callable[[str], ModuleType]


def test_the_control_differs_from_stock_by_roundings_alone(
    program: Program, fp32_bundle: Path, fp32_generator: Generator, tmp_path: Path
) -> None:
    control = program("fused_agreement").perturbed(Bundle.open(fp32_bundle), tmp_path / "control")
    assert not list(control.changed_files())
    assert set(control.manifest.graphs) == {"stage", "decoder"}
    candidates = {"control": Generator(control, ONE_THREAD)}
    found = teacher_forced_pairs(fp32_generator, candidates, {"control": (None, "control")}, images=2)["control"]
    assert 0 < found.kl.max() < 1e-9
    assert (found.top1 == 1).all()
    # Another process makes its own meanwhile.
    assert not list(program("fused_agreement").perturbed(Bundle.open(fp32_bundle), tmp_path / "again").changed_files())


def test_differences_are_taken_in_pairs(program: Program) -> None:
    module, sizes = program("fused_agreement"), np.array([1.0, 3.0])

    def by_image(total: list[float], agreeing: list[float]) -> ByImage:
        parts = np.array([[0.25, 0.75]])
        return ByImage(np.outer(total, parts[0]), np.outer(agreeing, parts[0]), sizes)

    stock = by_image([4.0, 400.0], [4.0, 2.0])
    other = by_image([4.4, 400.4], [4.0, 1.0])
    found = module.figures(
        {"stock": stock, "fused": other, "control": stock}, {"fused": by_image([0.4, 0.4], [4, 4]), "control": stock}
    )
    # The images differ much, the pairs by 0.1 nats a token each.
    assert found["fused"]["kl_less_stock"] == pytest.approx([0.1, 0.1, 0.1])
    assert found["fused"]["top1_less_stock"][0] == pytest.approx(-0.125)
    assert found["control"]["kl_less_stock"] == [0, 0, 0]
    lines = module.report({"default": found | {"operators": "nextscale-ops on avx2"}}, 2, 4.0, 1, 64, ["static-w8a8"])
    assert json.dumps(found)
    assert any("+0.100000 [+0.100000, +0.100000]" in line for line in lines)
    assert "- asked for and not measured: static-w8a8" in lines


@pytest.mark.parametrize(("images", "processes", "sizes"), [(256, 13, {16, 20}), (6, 4, {4, 2}), (2, 3, {2})])
def test_shares_are_all_images_in_whole_batches(program: Program, images: int, processes: int, sizes: set[int]) -> None:
    shares = program("fused_agreement").image_shares(images, processes)
    assert [image for share in shares for image in share] == list(range(images))
    assert {len(share) for share in shares} == sizes


def test_shares_have_the_figures_of_all_images(program: Program, fp32_bundle: Path, int8_bundle: Path) -> None:
    module = program("fused_agreement")
    more = 1, 4.0, ONE_THREAD, ONE_THREAD
    whole = module.compare(fp32_bundle, int8_bundle, range(6), *more)
    parts = [module.compare(fp32_bundle, int8_bundle, share, *more) for share in module.image_shares(6, 2)]
    assert module.recipe_figures(parts) == module.recipe_figures([whole])
    assert whole[0]["stock"].kl.shape == (6,)
    again = module.compare(fp32_bundle, int8_bundle, range(4), *more)[0]
    assert (again["stock"].kl == whole[0]["stock"].kl[:4]).all()
