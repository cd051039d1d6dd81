import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import L, V, read_manifest, write_fake_bundle, write_manifest

from nextscale.runtime import (
    BundleError,
    Cancelled,
    ClassLabelError,
    Generator,
    NextscaleError,
    RequestError,
    StageResult,
    _session_pool,
)
from nextscale.runtime import _machine as machine
from nextscale.runtime._uniforms import uniforms


def keep(result: StageResult) -> None:
    """A callback that wants to see the stages and change nothing."""


def test_generate_gives_images_and_token_maps(generator: Generator) -> None:
    result = generator.generate([0, "tabby cat", np.int64(4)], seed=1)
    assert (result.images.shape, result.images.dtype) == ((3, 12, 12, 3), np.uint8)
    assert (result.token_maps.shape, result.token_maps.dtype) == ((3, L), np.int64)
    assert result.class_labels.tolist() == [0, 1, 4]
    assert len(np.unique(result.token_maps)) > 2


@pytest.mark.parametrize(
    "sampling",
    [{}, {"top_k": 1}, {"top_k": 0, "top_p": 0.0}, {"top_k": 5, "top_p": 0.7}, {"cfg_scale": 0.0}, {"top_k": V}],
    ids=str,
)
def test_streaming_makes_the_same_tokens_and_pictures(generator: Generator, sampling: dict[str, Any]) -> None:
    labels = [0, 3, 5]
    single = generator.generate(labels, seed=4, **sampling)
    streamed = generator.generate(labels, seed=4, on_stage=keep, **sampling)
    assert np.array_equal(single.token_maps, streamed.token_maps)
    assert np.array_equal(single.images, streamed.images)


@pytest.mark.parametrize("on_stage", [None, keep], ids=["generate", "streaming"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_an_image_is_the_same_in_any_batch(generator: Generator, batch_size: int, on_stage: Any) -> None:
    labels = [0, 1, 2, 3, 4]
    whole = generator.generate(labels, seed=8)
    parts = generator.generate(labels, seed=8, batch_size=batch_size, on_stage=on_stage)
    assert np.array_equal(whole.token_maps, parts.token_maps)
    assert np.array_equal(whole.images, parts.images)
    alone = generator.generate([3], seed=8, first_image=3)
    assert np.array_equal(alone.token_maps[0], whole.token_maps[3])


def test_the_seed_decides(generator: Generator) -> None:
    first, second, other = (generator.generate([0] * 8, seed=seed).token_maps for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_given_uniforms_replace_the_seeds(generator: Generator) -> None:
    numbers = uniforms(6, [0, 1], L)
    given = generator.generate([0, 1], uniforms=numbers.astype(np.float64), seed=99)
    assert np.array_equal(given.token_maps, generator.generate([0, 1], seed=6).token_maps)


def test_forced_tokens_are_taken(generator: Generator) -> None:
    tokens = np.random.default_rng(0).integers(V, size=(2, L))
    assert np.array_equal(generator.generate([0, 1], forced_tokens=tokens).token_maps, tokens)
    partly = tokens.copy()
    partly[:, 5:] = -1
    for on_stage in (None, keep):
        result = generator.generate([0, 1], forced_tokens=partly, on_stage=on_stage)
        assert np.array_equal(result.token_maps[:, :5], tokens[:, :5])
        assert (result.token_maps >= 0).all()


def test_stream_tells_every_stage(generator: Generator) -> None:
    results = list(generator.stream([0, 1], seed=3, outputs=["logits"]))
    whole = generator.generate([0, 1], seed=3)
    assert [(result.stage, result.num_stages) for result in results] == [(0, 3), (1, 3), (2, 3)]
    assert np.array_equal(np.concatenate([result.tokens for result in results], axis=1), whole.token_maps)
    assert [result.outputs["logits"].shape for result in results] == [(2, n, V) for n in (1, 4, 9)]
    previews = [result.preview() for result in results]
    assert all(preview.shape == (2, 12, 12, 3) for preview in previews)
    assert np.array_equal(previews[-1], whole.images)
    assert not np.array_equal(previews[0], whole.images)


def test_greedy_takes_the_likeliest_logit(generator: Generator) -> None:
    for result in generator.stream([2], top_k=1, outputs=["logits"]):
        assert np.array_equal(result.outputs["logits"].argmax(-1), result.tokens)


def test_further_outputs_come_only_when_asked_for(generator: Generator) -> None:
    assert next(generator.stream([0])).outputs == {}


def test_further_outputs_come_by_name(generator: Generator) -> None:
    results = list(generator.stream([0, 1], outputs=["present.f_hat", "present.0.key"]))
    assert [result.outputs["present.0.key"].shape for result in results] == [(4, 1, 8, 1), (4, 1, 8, 5), (4, 1, 8, 14)]
    assert np.array_equal(generator.decode(results[-1].outputs["present.f_hat"]), results[-1].preview())
    with pytest.raises(RequestError, match=r'stage\.onnx has no output "present\.1\.key"'):
        generator.stream([0], outputs=["present.1.key"])


def test_previews_outlive_the_stream(generator: Generator) -> None:
    first = next(generator.stream([0, 1], seed=3))
    expected = first.preview()
    list(generator.stream([2, 3], seed=4))
    assert np.array_equal(first.preview(), expected)


def test_decode_takes_a_latent(generator: Generator) -> None:
    assert generator.decode(np.zeros((2, 2, 3, 3), np.float32)).shape == (2, 12, 12, 3)
    with pytest.raises(RequestError, match=r"f_hat: expected float32 \[B, 2, 3, 3\], found float64 \[2, 2, 3, 3\]"):
        generator.decode(np.zeros((2, 2, 3, 3)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("f_hat", "message"),
    [
        (np.zeros((0, 2, 3, 3), np.float32), "f_hat is empty: expected at least one latent"),
        (np.full((1, 2, 3, 3), np.nan, np.float32), "f_hat: expected finite numbers, found nan"),
        (np.full((1, 2, 3, 3), -np.inf, np.float32), "f_hat: expected finite numbers, found -inf"),
    ],
    ids=["empty", "nan", "infinite"],
)
def test_what_is_no_latent_is_refused(generator: Generator, f_hat: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}$"):
        generator.decode(f_hat)


def test_a_callback_cancels(generator: Generator) -> None:
    seen: list[int] = []

    def stop_at_second(result: StageResult) -> bool:
        seen.append(result.stage)
        return result.stage < 1

    with pytest.raises(Cancelled, match="cancelled after 2 of 3 stages"):
        generator.generate([0], on_stage=stop_at_second)
    assert seen == [0, 1]


def test_numpys_false_cancels(generator: Generator) -> None:
    with pytest.raises(Cancelled, match="cancelled after 1 of 3 stages"):
        generator.generate([0], on_stage=lambda result: (result.tokens < 0).all())
    with pytest.raises(Cancelled, match="cancelled after 1 of 3 stages"):
        generator.generate([0], on_stage=lambda result: np.array(False))


@pytest.mark.parametrize(
    "answer", [None, 0, "", True, np.True_, np.array(True), np.array(0), np.array([False])], ids=repr
)
def test_no_other_answer_cancels(generator: Generator, answer: object) -> None:
    assert len(generator.generate([0], on_stage=lambda result: answer).images) == 1


def test_an_event_cancels(generator: Generator) -> None:
    event = threading.Event()
    stages = generator.stream([0], cancel=event)
    next(stages)
    event.set()
    with pytest.raises(Cancelled, match="cancelled after 1 of 3 stages"):
        next(stages)
    with pytest.raises(Cancelled):
        generator.generate([0], cancel=event)


class Flag:
    """A flag that says something else than a truth value."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def is_set(self) -> Any:
        return self.said


def test_a_flag_that_says_neither_is_refused(generator: Generator) -> None:
    with pytest.raises(RequestError, match=r"cancel: is_set\(\) said int64 \[2\]; expected True or False"):
        generator.generate([0], cancel=Flag(np.array([0, 1])))
    with pytest.raises(Cancelled):
        generator.generate([0], cancel=Flag(np.array(True)))


def test_several_threads_share_a_generator(fake_bundle: Path) -> None:
    shared = Generator(fake_bundle)
    expected = [Generator(fake_bundle).generate([label], seed=label).token_maps for label in range(5)] * 8

    def work(item: int) -> np.ndarray:
        return shared.generate([item % 5], seed=item % 5, on_stage=keep if item % 2 else None).token_maps

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(40)))
    assert np.array_equal(found, expected)


def test_graphs_are_loaded_when_needed(fake_bundle: Path) -> None:
    generator = Generator(fake_bundle)
    assert not generator._pool._sessions
    generator.generate([0])
    assert generator._pool._sessions.keys() == {"generate"}


NAN = math.nan
BAD_REQUESTS = {
    "no class": ([], {}, "class_labels is empty"),
    "one class": (1, {}, "class_labels 1: expected several, such as [1]"),
    "one name": ("goldfish", {}, "class_labels 'goldfish': expected several, such as ['goldfish']"),
    "a number in an array": (np.array(3), {}, "class_labels 3: expected several, such as [3]"),
    "bytes": (b"\1\2", {}, r"class_labels b'\x01\x02': expected a list of class ids or names"),
    "a dictionary": ({0: 1}, {}, "class_labels {0: 1}: expected a list of class ids or names"),
    "a set": ({0}, {}, "class_labels {0}: expected a list of class ids or names"),
    "fraction": (1.5, {}, "class_labels 1.5: expected several"),
    "no classes": (None, {}, "class_labels is missing"),
    "top_k over V": ([0], {"top_k": V + 1}, "top_k 17 is out of range: expected 0 to 16"),
    "top_k negative": ([0], {"top_k": -1}, "top_k -1 is out of range"),
    "top_k fraction": ([0], {"top_k": 1.5}, "top_k 1.5: expected an integer"),
    "top_k float": ([0], {"top_k": 9.0}, "top_k 9.0: expected an integer"),
    "top_k true": ([0], {"top_k": True}, "top_k True: expected an integer"),
    "top_k huge": ([0], {"top_k": 10**5000}, "top_k about 10^5000 is out of range"),
    "top_p just over 1": ([0], {"top_p": 1 + 2**-52}, "top_p 1.0000000000000002 is out of range: expected 0 to 1"),
    "top_p negative": ([0], {"top_p": -0.1}, "top_p -0.1 is out of range: expected 0 to 1"),
    "top_p over 1": ([0], {"top_p": 1.01}, "top_p 1.01 is out of range"),
    "top_p NaN": ([0], {"top_p": NAN}, "top_p nan is out of range"),
    "top_p text": ([0], {"top_p": "much"}, "top_p 'much': expected 0 to 1"),
    "cfg text": ([0], {"cfg_scale": "4"}, "cfg_scale '4': expected 0 to 1000"),
    "cfg bytes": ([0], {"cfg_scale": b"4"}, "cfg_scale b'4': expected 0 to 1000"),
    "cfg true": ([0], {"cfg_scale": np.True_}, "cfg_scale True: expected 0 to 1000"),
    "cfg complex": ([0], {"cfg_scale": 1j}, "cfg_scale 1j: expected 0 to 1000"),
    "cfg huge": ([0], {"cfg_scale": 10**5000}, "cfg_scale inf is out of range"),
    "cfg of none": ([0], {"cfg_scale": []}, "cfg_scale: expected one value, found 0"),
    "cfg in two lists": ([0], {"cfg_scale": [[4]]}, "cfg_scale [4]: expected 0 to 1000"),
    "cfg NaN of NumPy": ([0], {"cfg_scale": np.float32("nan")}, "cfg_scale nan is out of range"),
    "cfg negative": ([0], {"cfg_scale": -1}, "cfg_scale -1 is out of range: expected 0 to 1000"),
    "cfg NaN": ([0], {"cfg_scale": NAN}, "cfg_scale nan is out of range"),
    "cfg infinite": ([0], {"cfg_scale": math.inf}, "cfg_scale inf is out of range"),
    "cfg over float32": ([0], {"cfg_scale": 1e39}, "cfg_scale 1e+39 is out of range"),
    "seed negative": ([0], {"seed": -1}, "seed -1 is out of range: expected 0 to 2^64 - 1"),
    "seed too large": ([0], {"seed": 2**64}, "is out of range"),
    "seed huge": ([0], {"seed": 10**5000}, "seed about 10^5000 is out of range: expected 0 to 2^64 - 1"),
    "seed float": ([0], {"seed": 1.0}, "seed 1.0: expected an integer"),
    "seed true": ([0], {"seed": True}, "seed True: expected an integer"),
    "image huge": ([0], {"first_image": -(10**5000)}, "first_image about -10^5000 is out of range"),
    "seed text": ([0], {"seed": "1"}, "seed '1': expected an integer"),
    "image too large": ([0, 1], {"first_image": 2**64 - 1}, "first_image 18446744073709551615 is out of range"),
    "tokens shape": ([0], {"forced_tokens": np.zeros((2, L), int)}, "forced_tokens: expected integers [1, 14]"),
    "tokens floats": ([0], {"forced_tokens": np.zeros((1, L))}, "forced_tokens: expected integers [1, 14]"),
    "tokens over V": ([0], {"forced_tokens": np.full((1, L), V)}, "expected -1 (sample) to 15, found 16 to 16"),
    "tokens below -1": ([0], {"forced_tokens": np.full((1, L), -2)}, "found -2 to -2"),
    "tokens huge": ([0], {"forced_tokens": [[10**30] * L]}, "expected integers [1, 14], found object [1, 14]"),
    "tokens over int64": (
        [0],
        {"forced_tokens": [[2**63 + 1] * L]},
        "found 9223372036854775809 to 9223372036854775809",
    ),
    "tokens true": ([0], {"forced_tokens": np.ones((1, L), bool)}, "expected integers [1, 14], found bool [1, 14]"),
    "uniforms ragged": (
        [0, 1],
        {"uniforms": [[0.1], [0.2, 0.3]]},
        "expected an array, found rows of different lengths",
    ),
    "uniforms objects": ([0], {"uniforms": np.full((1, L), None)}, "expected floats [1, 14], found object [1, 14]"),
    "uniforms shape": ([0], {"uniforms": np.zeros((1, 3))}, "uniforms: expected floats [1, 14]"),
    "uniforms of 1": ([0], {"uniforms": np.ones((1, L))}, "at least 0 and below 1"),
    "uniforms rounding to 1": ([0], {"uniforms": np.full((1, L), 1 - 1e-9)}, "in float32, found 0.999999999"),
    "uniforms beyond float32": ([0], {"uniforms": np.full((1, L), 1e300)}, "in float32, found 1e+300"),
    "inputs in a list": ([0], {"inputs": [1]}, "inputs [1]: expected values by name"),
    "cancel true": ([0], {"cancel": True}, "cancel True: expected a flag with is_set(), such as a threading.Event"),
    "cancel class": ([0], {"cancel": threading.Event}, "expected a flag with is_set()"),
    "uniforms NaN": ([0], {"uniforms": np.full((1, L), NAN)}, "at least 0 and below 1"),
}


@pytest.mark.parametrize(("labels", "parameters", "message"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
@pytest.mark.parametrize("form", ["generate", "stream"])
def test_bad_requests_are_refused_at_the_call(
    generator: Generator, form: str, labels: Any, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        getattr(generator, form)(labels, **parameters)
    assert message in str(caught.value)


@pytest.mark.parametrize("label", [6, -1, "goldfsh", 0.5, 1.0, True, np.True_, [0], b"0", None], ids=repr)
def test_labels_out_of_range_are_refused(generator: Generator, label: Any) -> None:
    with pytest.raises(ClassLabelError):
        generator.generate([0, label])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is out of range: expected at least 1"),
        ({"batch_size": 1.5}, "batch_size 1.5: expected an integer"),
        ({"batch_size": "2"}, "batch_size '2': expected an integer"),
        ({"batch_size": True}, "batch_size True: expected an integer"),
        ({"on_stage": 3}, "on_stage 3: expected a function of one stage's result"),
    ],
    ids=str,
)
def test_options_of_another_type_are_refused(generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        generator.generate([0], **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("output", [[], b"logits", None, 3], ids=repr)
def test_outputs_that_are_no_names_are_refused(generator: Generator, output: Any) -> None:
    with pytest.raises(RequestError, match=r'outputs .*: expected names of outputs, such as "logits"'):
        generator.stream([0], outputs=[output])


@pytest.mark.parametrize("outputs", ["logits", b"logits", None, 3], ids=repr)
def test_outputs_that_are_no_list_are_refused(generator: Generator, outputs: Any) -> None:
    with pytest.raises(RequestError, match=r'outputs .*: expected several, such as \["logits"\]'):
        generator.stream([0], outputs=outputs)


@pytest.mark.parametrize("graph", ["generat", 3, None, ["stage"]], ids=repr)
def test_a_graph_that_no_bundle_has_is_refused(generator: Generator, graph: Any) -> None:
    with pytest.raises(BundleError, match=r"the bundle has no graph .*; it has generate, stage, decoder"):
        generator.load(graph)


@pytest.mark.parametrize("options", [4, {"threads": 1}, False], ids=repr)
def test_options_that_are_none_are_refused(fake_bundle: Path, options: Any) -> None:
    with pytest.raises(NextscaleError, match=r"options .*: expected SessionOptions"):
        Generator(fake_bundle, options)


@pytest.mark.parametrize(
    "labels",
    [
        range(2),
        (0, np.int8(1)),
        np.array([0, 1], np.uint16),
        np.array([0, 1], object),
        ["0", np.array(1)],
        [0, "tabby cat"],
    ],
    ids=repr,
)
def test_labels_of_any_kind(generator: Generator, labels: Any) -> None:
    assert generator.generate(labels).class_labels.tolist() == [0, 1]
    assert generator.generate(label for label in labels).class_labels.tolist() == [0, 1]


def test_numbers_of_any_type(generator: Generator) -> None:
    expected = generator.generate([0], seed=3, cfg_scale=2.0, top_k=5).token_maps
    numbers = {"seed": np.uint64(3), "cfg_scale": np.float32(2), "top_k": np.int16(5), "first_image": None}
    arrays = {"seed": np.array(3), "cfg_scale": np.array(2), "top_k": np.array([5]), "batch_size": np.int64(1)}
    for settings in (numbers, arrays):
        assert np.array_equal(generator.generate([0], **settings).token_maps, expected)  # type: ignore[arg-type]


def test_a_stream_keeps_what_it_was_given(generator: Generator) -> None:
    given = {
        "class_labels": np.array([0, 1]),
        "forced_tokens": np.full((2, L), -1),
        "uniforms": uniforms(6, [0, 1], L),
    }
    expected = generator.generate(**given).token_maps  # type: ignore[arg-type]
    stages = generator.stream(**given)  # type: ignore[arg-type]
    for name, value in (("class_labels", 4), ("forced_tokens", 7), ("uniforms", 0.999)):
        given[name][:] = value
    assert np.array_equal(np.concatenate([stage.tokens for stage in stages], axis=1), expected)


def test_a_failure_inside_onnxruntime_is_one_line(tmp_path: Path) -> None:
    generator = Generator(write_fake_bundle(tmp_path / "fake"))
    with pytest.raises(NextscaleError, match=r"stage\.onnx: onnxruntime failed: .*") as caught:
        generator._run("stage", ["tokens"], {})
    assert "\n" not in str(caught.value)


def old_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What /proc/cpuinfo says on a CPU without VNNI, in a process that has not warned of it yet."""
    monkeypatch.setattr(_session_pool, "_warned", set())
    (tmp_path / "cpuinfo").write_text("model name\t: Old CPU\nflags\t\t: fpu avx2 fma\n")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")


def test_loading_an_integer_bundle_where_products_saturate_warns_once(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old_cpu(tmp_path, monkeypatch)
    Generator(damaged).load("generate", "stage")
    assert not caplog.messages  # of full precision
    manifest = read_manifest(damaged)
    manifest["recipe"]["precision"] = "int8"
    write_manifest(damaged, manifest)
    for _ in range(2):
        Generator(damaged).load("generate", "stage")
    (message,) = caplog.messages
    named = f"bundle {manifest['name']} (recipe {manifest['recipe']['name']})"
    assert message.startswith(f"{named}: Old CPU has no VNNI instructions")


def test_loading_a_bundle_that_never_saturates_warns_nobody(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old_cpu(tmp_path, monkeypatch)
    manifest = read_manifest(damaged)
    manifest["recipe"] |= {"precision": "int8", "saturation": {"products": 3, "can_saturate": {}}}
    write_manifest(damaged, manifest)
    Generator(damaged).load("generate")
    assert not caplog.messages
