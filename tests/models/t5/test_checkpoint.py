"""Folders as Hugging Face lays them out: every form of the weights, and each refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from nextscale.models.checkpoint_file import CheckpointError
from nextscale.models.t5.checkpoint import SIZES, load_t5, read_config
from nextscale.models.t5.encoder import T5Config
from nextscale.models.t5.presets import get_preset
from nextscale.models.t5.random_weights import random_t5

CONFIG = T5Config(40, 32, 2, 2, 8, 24)
State = dict[str, Tensor]
Documents = dict[str, Any]
# As the official configuration has it, beside the sizes.
OTHER = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-06, "num_decoder_layers": 2}
ALIAS = "encoder.embed_tokens.weight"


def document(config: T5Config = CONFIG) -> Documents:
    """What config.json says."""
    return OTHER | {theirs: getattr(config, ours) for ours, theirs in SIZES.items()}


def whole_model(state: State) -> State:
    """With what a T5 has beside the encoder."""
    decoder = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(3), "lm_head.weight": torch.ones(2)}
    return {**state, ALIAS: state["shared.weight"], "decoder.embed_tokens.weight": state["shared.weight"], **decoder}


def sharded(folder: Path, state: State, save: Callable[[State, Path], None], stem: str, suffix: str) -> None:
    files = {name: f"{stem}-{i % 2 + 1:05}-of-00002.{suffix}" for i, name in enumerate(state)}
    for file in set(files.values()):
        save({name: state[name].clone() for name in state if files[name] == file}, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def save_safetensors(state: State, path: Path) -> None:
    safetensors.torch.save_file(state, path)


FORMS: dict[str, Callable[[Path, State], None]] = {
    "safetensors": lambda folder, state: save_safetensors(
        {name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors"
    ),
    "bin": lambda folder, state: torch.save(state, folder / "pytorch_model.bin"),
    "safetensors shards": lambda folder, state: sharded(folder, state, save_safetensors, "model", "safetensors"),
    "bin shards": lambda folder, state: sharded(folder, state, torch.save, "pytorch_model", "bin"),
}


@pytest.fixture(scope="module")
def state() -> State:
    return dict(random_t5(CONFIG).state_dict())


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A folder with config.json and weights in one form."""

    def write(state: State, config: object = None, form: str = "safetensors") -> Path:
        (tmp_path / "config.json").write_text(json.dumps(document() if config is None else config))
        FORMS[form](tmp_path, state)
        return tmp_path

    return write


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "whole T5"])
def test_every_form_is_read(write: Callable[..., Path], state: State, form: str, whole: bool) -> None:
    found = load_t5(write(whole_model(state) if whole else state, form=form))
    assert found.config == CONFIG
    assert not found.training
    assert found.state_dict().keys() == state.keys()
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_the_type_that_is_stored(write: Callable[..., Path], state: State, dtype: torch.dtype) -> None:
    found = load_t5(write({name: tensor.to(dtype) for name, tensor in state.items()}))
    assert {tensor.dtype for tensor in found.state_dict().values()} == {dtype}
    assert found(torch.tensor([[3, 1]])).dtype == torch.float32


def test_the_table_may_have_its_other_name_alone(write: Callable[..., Path], state: State) -> None:
    renamed = {ALIAS if name == "shared.weight" else name: tensor for name, tensor in state.items()}
    assert torch.equal(load_t5(write(renamed)).shared.weight, state["shared.weight"])


def test_two_tables_that_differ_are_refused(write: Callable[..., Path], state: State) -> None:
    with pytest.raises(CheckpointError, match=r"shared\.weight and encoder\.embed_tokens\.weight differ"):
        load_t5(write({**state, ALIAS: state["shared.weight"] + 1}))


def test_safetensors_go_before_files_of_torch(write: Callable[..., Path], state: State) -> None:
    """Folders of releases have both, each with an index where it is sharded."""
    write({name: tensor + 1 for name, tensor in state.items()}, form="bin shards")
    found = load_t5(write(state, form="safetensors shards"))
    assert torch.equal(found.shared.weight, state["shared.weight"])


@pytest.mark.parametrize("name", ["flan-t5-xl", "byt5-small"])
def test_the_official_configurations_are_read(tmp_path: Path, name: str) -> None:
    config = document(get_preset(name))
    del config["relative_attention_max_distance"]  # older files do not say it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path / "config.json") == get_preset(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "umt5"}, "\"model_type\" t5 or mt5, found 'umt5'"),
        ({"model_type": None}, "found None"),
        ({"feed_forward_proj": "relu"}, "expected \"feed_forward_proj\" gated-gelu, found 'relu': T5 1.0 has no gates"),
        ({"feed_forward_proj": "gated-silu"}, "found 'gated-silu'"),
        ({"layer_norm_epsilon": 1e-5}, '"layer_norm_epsilon" 1e-06, found 1e-05'),
        ({"d_model": 0}, '"d_model" 1 to 1048576, found 0'),
        ({"d_model": 32.0}, r'"d_model" 1 to 1048576, found 32\.0'),
        ({"num_heads": True}, '"num_heads" 1 to 1048576, found True'),
        ({"num_layers": 257}, '"num_layers" 1 to 256, found 257'),
        ({"d_ff": None}, '"d_ff" 1 to 1048576, found None'),
        ({"relative_attention_num_buckets": 31}, "expected num_buckets in fours"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_architectures_and_sizes_are_refused(
    write: Callable[..., Path], state: State, changes: Documents, message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}") as caught:
        load_t5(write(state, document() | changes))
    assert "\n" not in str(caught.value)


def test_ungated_t5_is_the_default_of_a_configuration_without_the_word(
    write: Callable[..., Path], state: State
) -> None:
    config = document()
    del config["feed_forward_proj"]
    with pytest.raises(CheckpointError, match=r"found 'relu': T5 1\.0 has no gates; give a T5 v1\.1"):
        load_t5(write(state, config))


SECOND_BIAS = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "missing": (lambda s: s.pop("encoder.final_layer_norm.weight"), r"1 missing: encoder\.final_layer_norm\.weight"),
    "unexpected": (lambda s: s.update({SECOND_BIAS: torch.ones(1)}), "1 unexpected: " + re.escape(SECOND_BIAS)),
    "misshapen": (
        lambda s: s.update({"shared.weight": torch.ones(41, 32)}),
        r"1 misshapen: shared\.weight \(expected \[40, 32\], found \[41, 32\]\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_tensors_that_do_not_fit_are_named(
    write: Callable[..., Path], state: State, change: Callable[[State], object], message: str
) -> None:
    changed = dict(state)
    change(changed)
    with pytest.raises(
        CheckpointError, match=rf"model\.safetensors does not fit its config\.json: {message}"
    ) as caught:
        load_t5(write(changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(write: Callable[..., Path], state: State, value: float) -> None:
    damaged = {**state, "shared.weight": torch.full((40, 32), value)}
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in shared\.weight"):
        load_t5(write(damaged))


def test_integers_are_no_weights(write: Callable[..., Path], state: State) -> None:
    with pytest.raises(CheckpointError, match=r"expected dense float32.*found shared\.weight \(int8\)"):
        load_t5(write({**state, "shared.weight": torch.ones(40, 32, dtype=torch.int8)}))


def test_a_missing_shard_is_named(write: Callable[..., Path], state: State) -> None:
    folder = write(state, form="safetensors shards")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors does not exist"):
        load_t5(folder)


@pytest.mark.parametrize(("content", "message"), [([1], "found list"), ({"model": {"a": 1}}, "found model; save the")])
def test_what_is_no_state_dict_is_refused(write: Callable[..., Path], content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin: expected tensors .*{message}"):
        load_t5(write(content, form="bin"))


def test_a_folder_without_weights_is_refused(write: Callable[..., Path], state: State) -> None:
    folder = write(state)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"has no weights; expected model\.safetensors\.index\.json, .* or pytorch"
    ):
        load_t5(folder)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"config\.json does not exist; give a folder as Hugging Face lays it out"
    ):
        load_t5(tmp_path)


def test_a_file_instead_of_its_folder_is_refused(write: Callable[..., Path], state: State) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is a file; give the folder that has it and its conf"
    ):
        load_t5(write(state) / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON document"),
        ("[]", "expected an object"),
        (" " * 2**20 + "{}", "expected an object of at most"),
    ],
    ids=["cut", "list", "long"],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}"):
        load_t5(tmp_path)
