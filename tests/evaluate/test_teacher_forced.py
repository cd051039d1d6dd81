from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_model import NUM_CLASSES, ONE_THREAD, L, V, build_tiny, tiny_source

from nextscale.calib_data.subjects import Subjects
from nextscale.evaluate.teacher_forced import (
    agreement,
    as_json,
    bit_divergence,
    evaluation_labels,
    kl_divergence,
    sample,
    summarize,
    teacher_forced,
    teacher_forced_pairs,
)
from nextscale.runtime import Generator
from nextscale.runtime._errors import NextscaleError


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64))
    return p / p.sum(-1, keepdims=True)


# The figures


def test_kl_of_known_distributions() -> None:
    half, quarter = np.log(np.float32([[[0.5, 0.5]]])), np.log(np.float32([[[0.25, 0.75]]]))
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(half, quarter).shape == (1, 1)
    assert kl_divergence(half, quarter)[0, 0] == pytest.approx(expected, abs=1e-7)  # of float32 logits
    back = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl_divergence(quarter, half)[0, 0] == pytest.approx(back, abs=1e-7)


def test_kl_of_a_distribution_with_itself_is_0_whatever_the_offset() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (2, 3, 50)).astype(np.float32)
    assert (kl_divergence(logits, logits) == 0).all()
    np.testing.assert_allclose(
        kl_divergence(logits, logits + np.float32(64)), 0, atol=1e-4
    )  # 64 takes 6 bits of float32's 24


def test_kl_is_never_negative_and_that_of_its_definition() -> None:
    rng = np.random.default_rng(1)
    p, q = (rng.normal(0, 3, (2, 3, 50)).astype(np.float32) for _ in range(2))
    found = kl_divergence(p, q)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, (softmax(p) * np.log(softmax(p) / softmax(q))).sum(-1), rtol=1e-12)


def test_kl_of_large_logits_is_finite() -> None:
    p, q = np.float32([[[1000, -1000]]]), np.float32([[[-1000, 1000]]])
    assert kl_divergence(p, q)[0, 0] == pytest.approx(2000)


def test_figures_are_means_over_tokens_and_errors_over_images() -> None:
    """Two images of stages of 1 and 4 tokens."""
    divergence, agreeing = np.array([[1.0, 4.0], [3.0, 8.0]]), np.array([[1.0, 2.0], [0.0, 4.0]])
    found = summarize(divergence, agreeing, np.array([1.0, 4.0]))
    assert found.kl == pytest.approx((1 + 11 / 5) / 2)
    assert found.kl_stderr == pytest.approx(abs(11 / 5 - 1) / 2)
    assert found.top1 == pytest.approx(7 / 10)
    np.testing.assert_allclose(found.stage_kl, [2, 1.5])
    np.testing.assert_allclose(found.stage_top1, [0.5, 0.75])
    assert found.images == 2


def test_labels_are_spread_over_the_classes() -> None:
    labels = evaluation_labels(NUM_CLASSES, 25, seed=1)
    assert (np.bincount(labels, minlength=NUM_CLASSES) >= 2).all()
    assert len(labels) == 25


# Bundles


def test_a_bundle_agrees_with_itself(fp32_generator: Generator) -> None:
    found = teacher_forced(fp32_generator, {"same": fp32_generator}, images=5, batch_size=2)["same"]
    assert found.kl == found.kl_stderr == 0
    assert found.top1 == 1
    assert (found.stage_kl == 0).all()
    assert (found.stage_top1 == 1).all()
    assert found.images == 5


def test_int8_is_near_full_precision(fp32_generator: Generator, int8_generator: Generator) -> None:
    """Its figures differ from 0, and by far from those of unrelated logits."""
    seen: list[int] = []
    found = teacher_forced(
        fp32_generator,
        {"int8": int8_generator, "same": fp32_generator},
        images=6,
        batch_size=4,
        on_images=seen.append,
    )
    assert seen == [4, 6]
    assert list(found) == ["int8", "same"]
    assert 0 < found["int8"].kl < 0.2
    assert 0.7 < found["int8"].top1 < 1
    assert found["same"].kl == 0


@pytest.mark.parametrize("name", ["reference", "", "None"])
def test_a_candidate_may_have_any_name(fp32_generator: Generator, int8_generator: Generator, name: str) -> None:
    found = teacher_forced(fp32_generator, {name: int8_generator}, images=2)[name]
    assert found.kl > 0


def test_candidates_are_compared_with_each_other(fp32_generator: Generator, int8_generator: Generator) -> None:
    """KL(p || q) in the order that is asked for, and of one graph with itself nothing."""
    pairs: dict[str, tuple[str | None, str]] = {
        "from float": (None, "int8"),
        "back": ("int8", "fp32"),
        "0": ("fp32",) * 2,
    }
    both = {"int8": int8_generator, "fp32": fp32_generator}
    found = teacher_forced_pairs(fp32_generator, both, pairs, images=2)
    assert list(found) == list(pairs)
    forth = teacher_forced(fp32_generator, {"int8": int8_generator}, images=2)["int8"].kl
    assert found["from float"].kl.mean() == pytest.approx(forth)
    assert found["back"].kl.mean() > 0
    assert found["back"].kl.mean() != forth
    assert (found["0"].kl == 0).all()


def test_some_of_the_images_are_those_of_all(fp32_generator: Generator, int8_generator: Generator) -> None:
    seen: list[int] = []
    arguments = fp32_generator, {"int8": int8_generator}, {"int8": (None, "int8")}
    every = teacher_forced_pairs(*arguments, images=6, batch_size=2)["int8"]
    some = teacher_forced_pairs(*arguments, images=range(2, 6), batch_size=2, on_images=seen.append)["int8"]
    np.testing.assert_array_equal(some.divergence, every.divergence[2:])
    np.testing.assert_array_equal(some.agreeing, every.agreeing[2:])
    assert seen == [2, 4]


def test_figures_are_those_of_the_logits(fp32_generator: Generator, int8_generator: Generator) -> None:
    """Computed once more, image by image, from the bundles' outputs."""
    seed, cfg_scale, images = 7, 2.0, 3
    found = teacher_forced(
        fp32_generator, {"int8": int8_generator}, images=images, seed=seed, cfg_scale=cfg_scale, batch_size=2
    )["int8"]
    divergence, agreeing = [], []
    for i, label in enumerate(evaluation_labels(NUM_CLASSES, images, seed)):
        settings = {"seed": seed, "first_image": i, "cfg_scale": cfg_scale}
        tokens = fp32_generator.generate([label], **settings).token_maps  # type: ignore[arg-type]
        p, q = (
            np.concatenate(
                [
                    stage.outputs["logits"]
                    for stage in generator.stream([label], forced_tokens=tokens, outputs=["logits"], **settings)  # type: ignore[arg-type]
                ],
                axis=1,
            )
            for generator in (fp32_generator, int8_generator)
        )
        assert p.shape == (1, L, V)
        divergence.append((softmax(p) * np.log(softmax(p) / softmax(q))).sum(-1).mean())
        agreeing.append((p.argmax(-1) == q.argmax(-1)).mean())
    # A batch of 2 and one of 1 round their logits differently, by some 1e-5.
    assert found.kl == pytest.approx(np.mean(divergence), rel=1e-3)
    assert found.top1 == pytest.approx(np.mean(agreeing))
    assert found.kl_stderr == pytest.approx(np.std(divergence, ddof=1) / math.sqrt(images), rel=1e-2)


def test_a_bundle_of_another_model_is_refused(fp32_generator: Generator, tmp_path: Path) -> None:
    other = Generator(build_tiny(tmp_path / "other", "fp32", tiny_source(depth=1)), ONE_THREAD)
    with pytest.raises(NextscaleError, match=r"other: not the model of .+; compare bundles of one model"):
        teacher_forced(fp32_generator, {"other": other}, images=1)


def test_json_is_plain_and_strict(fp32_generator: Generator) -> None:
    """One image has no standard error, and JSON has no NaN."""
    found = as_json(teacher_forced(fp32_generator, {"same": fp32_generator}, images=1))
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["same"] == {
        "kl": 0.0,
        "kl_stderr": None,
        "top1": 1.0,
        "stage_kl": [0.0] * 4,
        "stage_top1": [1.0] * 4,
        "images": 1,
    }


# Tokens of bits, images of several sizes


def test_kl_of_bits_is_the_sum_of_theirs() -> None:
    """Of each bit as of a distribution over two values, and 0 of equal log-odds."""
    rng = np.random.default_rng(3)
    p, q = (rng.normal(0, 3, (2, 3, 5)).astype(np.float32) for _ in range(2))
    pairs = [np.stack([np.zeros_like(x), x], axis=-1).reshape(2, 15, 2) for x in (p, q)]
    np.testing.assert_allclose(bit_divergence(p, q), kl_divergence(*pairs).reshape(2, 3, 5).sum(-1), rtol=1e-9)
    assert (bit_divergence(p, p) == 0).all()
    assert bit_divergence(np.float32([[[1000]]]), np.float32([[[-1000]]]))[0, 0] == pytest.approx(1000)


def test_figures_of_several_sizes_are_means_over_their_own_tokens() -> None:
    """An image of stages of 1 and 4 tokens, and one of 1 token."""
    divergence, agreeing = np.array([[1.0, 4.0], [3.0, 0.0]]), np.array([[1.0, 2.0], [0.0, 0.0]])
    found = summarize(divergence, agreeing, np.array([[1.0, 4.0], [1.0, 0.0]]))
    assert found.kl == pytest.approx((1 + 3) / 2)
    assert found.top1 == pytest.approx(3 / 6)
    np.testing.assert_allclose(found.stage_kl, [2, 1])
    np.testing.assert_allclose(found.stage_top1, [0.5, 0.5])


def test_a_reference_may_be_gone_before_a_candidate_comes(fp32_generator: Generator, int8_generator: Generator) -> None:
    """What was sampled of all images first is compared as batch after batch is."""
    subjects = Subjects.of_classes(evaluation_labels(fp32_generator.bundle.model.num_classes, 5, 1))
    sampled, seen = list(sample(fp32_generator, subjects, range(5), batch_size=2)), list[int]()
    assert [(batch.images.start, batch.images.stop) for batch in sampled] == [(0, 2), (2, 4), (4, 5)]
    found = agreement(sampled, int8_generator, subjects, seen.append)
    expected = teacher_forced(fp32_generator, {"int8": int8_generator}, images=5, batch_size=2)["int8"]
    assert seen == [2, 4, 5]
    assert (found.kl, found.kl_stderr, found.top1) == (expected.kl, expected.kl_stderr, expected.top1)
    np.testing.assert_array_equal(found.stage_kl, expected.stage_kl)


def test_bundles_of_bits_and_sizes_are_compared(fake_sizes_bundle: Path) -> None:
    """One with itself: nothing differs, and smaller sizes have fewer stages."""
    generator = Generator(fake_sizes_bundle, ONE_THREAD)
    texts = tuple(np.linspace(0, 1, 8 * length, dtype=np.float32).reshape(length, 8) for length in (2, 3, 1))
    subjects = Subjects(np.array([1, 0, 0]), texts=texts)
    done: list[int] = []
    same = teacher_forced(
        generator, {"same": generator}, images=3, subjects=subjects, batch_size=2, on_images=done.append
    )["same"]
    assert (same.kl, same.top1, same.images, done) == (0, 1, 3, [1, 3])
    assert same.stage_kl.shape == (max(model.num_stages for model in generator.bundle.manifest.models[:2]),)


def test_images_of_a_range_are_the_same_ones(fake_sizes_bundle: Path) -> None:
    generator = Generator(fake_sizes_bundle, ONE_THREAD)
    texts = tuple(np.full((2, 8), number, np.float32) for number in range(3))
    subjects = Subjects(np.array([1, 0, 1]), texts=texts)
    whole, part = (
        teacher_forced_pairs(generator, {"same": generator}, {"same": (None, "same")}, images=images, subjects=subjects)
        for images in (3, range(1, 3))
    )
    np.testing.assert_array_equal(whole["same"].sizes[1:], part["same"].sizes)
    np.testing.assert_array_equal(whole["same"].agreeing[1:], part["same"].agreeing)
