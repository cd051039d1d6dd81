"""Our models against the official code, through the goldens that tests/goldens/make_goldens.py made with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from nextscale.models.var.checkpoint import load_models
from nextscale.models.var.transformer import VAR
from tests.goldens.parity import (
    CASES,
    CFG_SCALE,
    CHECKPOINT_FILES,
    GOLDENS,
    Case,
    Inputs,
    condense,
    differences,
    measure,
    models_of,
    random_inputs,
)

# Of the range of each array; tokens are identical. float32 sums in another order differ by about 1e-6 in a few blocks;
# a real mistake may be as small as 4e-5 (gelu with erf for gelu with tanh).
TOLERANCE = 1e-5
TRAINED_TOLERANCE = 1e-4


def read_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return dict(arrays)


def assert_parity(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], tolerance: float) -> None:
    allowed = {what: 0 if what.endswith(("tokens", "argmax")) else tolerance for what in theirs}
    too_far = {what: figure for what, figure in differences(ours, theirs).items() if figure > allowed[what]}
    assert not too_far


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_small_models_match_the_official_code(case: Case) -> None:
    var, vqvae = models_of(case)
    assert_parity(measure(var, vqvae, random_inputs(case.var, case.vqvae)), read_golden(case.name), TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_teacher_forcing_in_one_call_matches_the_stages(case: Case) -> None:
    var, vqvae = models_of(case)
    inputs = random_inputs(case.var, case.vqvae)
    logits = guided_in_one_call(var, vqvae.quantize.accumulate(split(inputs, case))[1], inputs.labels)
    golden = read_golden(case.name)["logits"]
    assert differences({"logits": logits.numpy()}, {"logits": golden})["logits"] <= TOLERANCE


def split(inputs: Inputs, case: Case) -> list[torch.Tensor]:
    return list(inputs.forced_tokens.split([pn * pn for pn in case.patch_nums], dim=1))


@torch.no_grad()
def guided_in_one_call(var: VAR, accumulated: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    null = torch.full_like(labels, var.config.num_classes)
    t = (CFG_SCALE * var.lvl_1L / (var.config.num_stages - 1))[..., None]
    return (1 + t) * var(labels, accumulated) - t * var(null, accumulated)


def test_the_trained_checkpoint_matches_the_official_code() -> None:
    folder = Path(os.environ.get("NEXTSCALE_CHECKPOINTS", GOLDENS.parents[2] / "shared" / "checkpoints"))
    paths = [folder / name for name in CHECKPOINT_FILES]
    if not all(path.exists() for path in paths):
        pytest.skip(f"no {' and '.join(CHECKPOINT_FILES)} in {folder}; set NEXTSCALE_CHECKPOINTS to their folder")
    var, vqvae = load_models(*paths)
    ours = condense(measure(var, vqvae, random_inputs(var.config, vqvae.config)))
    assert_parity(ours, read_golden("checkpoint"), TRAINED_TOLERANCE)


def test_the_goldens_tell_the_options_apart() -> None:
    base = read_golden("base")
    for case in CASES[1:]:
        golden = read_golden(case.name)
        same = [what for what in base if base[what].shape == golden[what].shape and (base[what] == golden[what]).all()]
        assert len(same) < len(base), f"{case.name} does not differ from base in anything"
