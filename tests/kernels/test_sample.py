"""Sample on what tests/export/test_sampling_graph.py does not reach: threads, batches, masks, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from operator_session import Operator

Array = NDArray[Any]


def example(shape: tuple[int, int, int], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    forced = rng.integers(0, shape[2], shape[:2])
    return {
        "logits": (2.5 * rng.standard_normal(shape)).astype(np.float32),
        "uniforms": rng.random(shape[:2], np.float32),
        "forced": np.where(rng.random(shape[:2]) < 0.1, forced, -1),
        "top_k": np.array(min(900, shape[2])),
        "top_p": np.array(0.96, np.float32),
    }


def sample(library: Path, inputs: dict[str, Array], **options: Any) -> Array:
    tokens: Array = Operator(library, "Sample", inputs, ["tokens"], **options)()[0]
    return tokens


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 63), (2, 40, 65), (1, 256, 4096), (2, 3, 40000), (0, 4, 8)])
def test_threads_batches_and_instruction_sets_give_the_same_tokens(
    ops_library: Path, isa: str, shape: tuple[int, int, int]
) -> None:
    inputs = example(shape)
    tokens = sample(ops_library, inputs, isa="portable")
    assert tokens.shape == shape[:2]
    for threads in (1, 2, 3, 8):
        np.testing.assert_array_equal(sample(ops_library, inputs, isa=isa, threads=threads), tokens)
    for image in range(shape[0]):
        single = {name: x[image : image + 1] if x.ndim else x for name, x in inputs.items()}
        np.testing.assert_array_equal(sample(ops_library, single, isa=isa)[0], tokens[image])


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (0, 1.0), (40, 0.0), (64, 1.0)])
def test_an_entry_that_is_masked_is_never_taken(ops_library: Path, isa: str, top_k: int, top_p: float) -> None:
    """Not even where the filters ask for more entries than there are."""
    logits = np.zeros((1, 513, 64), np.float32)
    logits[..., :20] = logits[..., 31:] = -np.inf
    inputs = example(logits.shape) | {"logits": logits, "forced": np.full((1, 513), -1)}
    inputs["uniforms"] = (np.arange(513, dtype=np.float32) / 512)[None]
    inputs |= {"top_k": np.array(top_k), "top_p": np.array(top_p, np.float32)}
    assert set(sample(ops_library, inputs, isa=isa).ravel().tolist()) == set(range(20, 31))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_give_some_entry(ops_library: Path, isa: str, value: float) -> None:
    inputs = example((2, 3, 100)) | {"forced": np.full((2, 3), -1)}
    inputs["logits"][0] = value
    inputs["logits"][1, :, 50:] = value
    tokens = sample(ops_library, inputs, isa=isa)
    assert np.all((tokens >= 0) & (tokens < 100))


def test_what_does_not_fit_is_refused(ops_library: Path) -> None:
    inputs = example((2, 3, 100))
    for changed, words in (
        ({"uniforms": inputs["uniforms"][:1]}, r"uniforms has the shape \[1, 3\], expected \[2, 3\]"),
        ({"forced": inputs["forced"][:, :1]}, r"forced has the shape \[2, 1\], expected \[2, 3\]"),
        ({"top_k": np.array([1])}, r"top_k has the shape \[1\], expected \[\]"),
        ({"top_k": np.array(101)}, "top_k is 101, expected at most 100"),
        ({"logits": inputs["logits"][..., :0]}, "logits are of no entries"),
    ):
        with pytest.raises(Exception, match=words):
            sample(ops_library, inputs | changed)
