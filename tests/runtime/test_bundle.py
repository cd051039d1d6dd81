import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import CLASS_NAMES, L, in_download_cache, in_schema_1, read_manifest, write_fake_bundle, write_manifest

from nextscale.runtime import Bundle, BundleError, ClassLabelError, Generator, RequestError
from nextscale.runtime._class_names import label_of_name, nearest_names
from nextscale.runtime._request import Request


def test_open_reads_the_manifest(fake_bundle: Path) -> None:
    bundle = Bundle.open(fake_bundle, verify_hashes=True)
    model = bundle.model
    assert (model.num_stages, model.num_tokens) == (3, L)
    assert model.stage_slices == (slice(0, 1), slice(1, 5), slice(5, 14))
    assert bundle.manifest.class_names == tuple(CLASS_NAMES)
    assert bundle.graph_path("decoder") == fake_bundle / "decoder.onnx"
    assert bundle.manifest.size == sum(path.stat().st_size for path in fake_bundle.iterdir()) - os.path.getsize(
        fake_bundle / "manifest.json"
    )


def test_initial_state_replaces_the_batch(fake_bundle: Path) -> None:
    state = {item.input: item.initial(3) for item in Bundle.open(fake_bundle).manifest.graphs["stage"].state}
    assert state["f_hat"].shape == (3, 2, 3, 3)
    assert state["past_key_values.0.key"].shape == (6, 1, 8, 0)


def test_unknown_keys_are_ignored(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["new"] = manifest["model"]["new"] = {"anything": None}
    write_manifest(damaged, manifest)
    assert Bundle.open(damaged).manifest.name == "fake-0"


def test_more_outputs_than_the_contracts_do_no_harm(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["graphs"]["stage"]["outputs"].append({"name": "observed.x", "dtype": "float32", "shape": [2]})
    write_manifest(damaged, manifest)
    assert Bundle.open(damaged).manifest.graphs["stage"].outputs[-1].name == "observed.x"


def change(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the manifest: set one value, or remove the key if value is ...."""

    def apply(manifest: Any) -> None:
        *parents, last = path
        for key in parents:
            manifest = manifest[key]
        if value is ...:
            del manifest[last]
        else:
            manifest[last] = value

    return apply


F_HAT = {"name": "f_hat", "dtype": "float32", "shape": ["B", 2, 3, 3]}
INPUT = {"name": "x", "kind": "scalar", "dtype": "float32", "shape": [], "default": 1}


def more_input(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """A further input of the request; a value of ... leaves out the key."""

    def apply(manifest: dict[str, Any]) -> None:
        entry = {key: value for key, value in {**INPUT, **changes}.items() if value is not ...}
        manifest["request"] = [*manifest["request"], entry]

    return apply


# Of both schemas.
BAD_MANIFESTS = {
    "no schema": (change("schema", value=...), 'key "schema" is missing; build the bundle again'),
    "schema is text": (change("schema", value="1"), 'schema: expected an integer of at least 1, found "1"'),
    "no model": (change("model", value=...), 'key "model" is missing'),
    "model is a list": (change("model", value=[]), "model: expected a JSON object, found []"),
    "no depth": (change("model", "depth", value=...), 'key "model.depth" is missing'),
    "negative depth": (change("model", "depth", value=-1), "model.depth: expected an integer of at least 1, found -1"),
    "depth is true": (change("model", "depth", value=True), "model.depth: expected an integer"),
    "names too few": (change("class_names", value=["a"]), "class_names: expected 5 names, as model.num_classes says"),
    "too many names": (
        lambda manifest: manifest.update(class_names=[""] * 100_001),
        "class_names: expected at most 100000 names, found 100001",
    ),
    "name too long": (
        change("class_names", 2, value="é" * 501),
        "class_names[2]: expected a name of at most 1000 bytes",
    ),
    "name with escape": (
        change("class_names", 1, value="\x1b[2J"),
        "class_names[1]: expected a line of printable text",
    ),
    "no recipe name": (change("recipe", value={}), 'key "recipe.name" is missing'),
    "no decoder": (change("graphs", "decoder", value=...), 'key "graphs.decoder" is missing'),
    "input missing": (
        change("graphs", "generate", "inputs", value=[]),
        "graphs.generate.inputs: expected the contract's, class_labels (int64), uniforms (float32), ",
    ),
    "input too many": (
        change("graphs", "decoder", "inputs", value=[F_HAT, {**F_HAT, "name": "more"}]),
        "graphs.decoder.inputs: expected the contract's, f_hat (float32), found",
    ),
    "output missing": (
        change("graphs", "decoder", "outputs", value=[F_HAT]),
        "graphs.decoder.outputs: expected the contract's, images (uint8), found",
    ),
    "unknown type": (
        change("graphs", "decoder", "inputs", 0, "dtype", value="complex64"),
        "graphs.decoder.inputs[0].dtype: expected one of float32",
    ),
    "odd shape": (
        change("graphs", "decoder", "inputs", 0, "shape", value=[1.5]),
        "graphs.decoder.inputs[0].shape[0]: expected an integer",
    ),
    "state unknown symbol": (
        change("graphs", "stage", "state", 0, "initial_shape", value=["3B"]),
        "graphs.stage.state[0].initial_shape[0]: expected an integer",
    ),
    "state too large": (
        change("graphs", "stage", "state", 0, "initial_shape", value=["B", 2**31, 2**31, 0, 2**31]),
        "graphs.stage.state[0].initial_shape: expected at most 8 dimensions of 268435456 elements in all, found [",
    ),
    "state of too many dimensions": (
        change("graphs", "stage", "state", 0, "initial_shape", value=[1] * 100),
        "graphs.stage.state[0].initial_shape: expected at most 8 dimensions",
    ),
    "state without f_hat": (
        change("graphs", "stage", "state", 0, "input", value="g_hat"),
        "graphs.stage.inputs: expected the contract's, ",
    ),
    "short hash": (change("files", "card.md", "sha256", value="ab"), "files.card.md.sha256: expected 64 hexadecimal"),
    "verify tokens": (change("verify", "token_maps", 0, value=[0]), "verify.token_maps[0]: expected a list of 14"),
    "verify token": (change("verify", "token_maps", 0, 3, value=16), "verify.token_maps[0][3]: expected an integer"),
    "verify seed": (change("verify", "seed", value=2**64), "verify.seed: expected an integer from 0 to 1844674407370"),
}
BAD_SCHEMA_1 = {
    "no stages": (
        change("model", "patch_nums", value=[]),
        "model.patch_nums: expected side lengths in ascending order",
    ),
    "stages descend": (change("model", "patch_nums", value=[1, 3, 2]), "model.patch_nums: expected side lengths"),
    "stage of 0": (change("model", "patch_nums", value=[0, 3]), "model.patch_nums[0]: expected an integer from 1"),
    "another latent": (
        change("model", "latent_size", value=4),
        "model.latent_size: expected 3, the last of patch_nums",
    ),
    "no generate": (change("graphs", "generate", value=...), 'key "graphs.generate" is missing'),
    "graph not listed": (
        change("graphs", "stage", "file", value="other.onnx"),
        'graphs.stage.file: expected a plain file name that "files" lists, found "other.onnx"',
    ),
    "verify label": (change("verify", "class_labels", 0, value=6), "verify.class_labels[0]: expected an integer"),
    "verify no label": (change("verify", "class_labels", value=[]), "verify.class_labels: expected at least one"),
    "verify rows": (change("verify", "class_labels", value=[0]), "verify.token_maps: expected one row for each of 1"),
    "verify cfg": (change("verify", "cfg_scale", value=-1), "verify.cfg_scale: expected a number of at least 0"),
    "verify cfg beyond floats": (change("verify", "cfg_scale", value=10**400), "verify.cfg_scale: expected a number"),
}
BAD_SCHEMA_2 = {
    "no family": (change("family", value=...), 'key "family" is missing'),
    "no stages": (change("model", "stage_sizes", value=[]), "model.stage_sizes: expected [height, width] of each"),
    "stages descend": (
        change("model", "stage_sizes", value=[[1, 1], [3, 3], [2, 3]]),
        "model.stage_sizes: expected [height, width] of each stage, by ascending number of tokens",
    ),
    "stage of 0": (
        change("model", "stage_sizes", value=[[0, 3]]),
        "model.stage_sizes[0][0]: expected an integer from 1",
    ),
    "stage without width": (
        change("model", "stage_sizes", 0, value=[1]),
        "model.stage_sizes[0]: expected [height, width], found [1]",
    ),
    "image of one number": (change("model", "image_size", value=12), "model.image_size: expected a list, found 12"),
    "no variants": (change("graphs", "stage", "variants", value={}), 'key "graphs.stage.variants.stock" is missing'),
    "graph not listed": (
        change("graphs", "stage", "variants", "stock", "file", value="other.onnx"),
        'graphs.stage.variants.stock.file: expected a plain file name that "files" lists, found "other.onnx"',
    ),
    "request is an object": (change("request", value={}), "request: expected a list, found {}"),
    "no forced tokens": (change("request", value=[INPUT]), "request: expected an input of kind forced_tokens"),
    "unknown kind": (
        more_input(kind="sound"),
        "request[6].kind: expected one of label, uniform, smooth_uniform, forced_tokens, scalar, text_features, "
        'text_mask, image, mask, negative_features, negative_mask, size, found "sound"',
    ),
    "noise of another size": (
        more_input(kind="smooth_uniform", shape=["B", 14, 15]),
        'request[6].shape: expected "B", 14 and 16, found ["B", 14, 15]',
    ),
    "integers as noise": (
        more_input(kind="smooth_uniform", dtype="int64", shape=["B", 14, 16]),
        "request[6].dtype: expected one of float32",
    ),
    "the name of another": (more_input(name="top_p"), 'request[6].name: expected a name of its own, found "top_p"'),
    "a second label": (
        more_input(kind="label", dtype="int64", shape=["B"]),
        "request[6].kind: expected no second input of its kind",
    ),
    "label without classes": (
        change("model", "num_classes", value=0),
        "request[0].kind: expected no label, since model.num_classes is 0",
    ),
    "label of floats": (change("request", 0, "dtype", value="float32"), "request[0].dtype: expected one of int64"),
    "label of two numbers": (change("request", 0, "shape", value=["B", 2]), 'request[0].shape: expected ["B"], found'),
    "uniforms for all": (change("request", 1, "shape", value=[14]), 'request[1].shape: expected "B" and sizes'),
    "uniforms of a symbol": (
        change("request", 1, "shape", value=["B", "L"]),
        'request[1].shape: expected "B" and sizes',
    ),
    "too many uniforms": (
        change("request", 1, "shape", value=["B", 2**31, 2**31]),
        "request[1].shape: expected at most 8 dimensions of 268435456 elements",
    ),
    "tokens of another model": (
        change("request", 2, "shape", value=["B", 15]),
        'request[2].shape: expected "B", 14 and further sizes',
    ),
    "scalar for each image": (change("request", 3, "shape", value=["B"]), "request[3].shape: expected [] or [3]"),
    "scalar of 2": (change("request", 3, "shape", value=[2]), "request[3].shape: expected [] or [3], found [2]"),
    "scalar of bytes": (change("request", 3, "dtype", value="uint8"), "request[3].dtype: expected one of float32, int"),
    "no default": (more_input(default=...), 'key "request[6].default" is missing'),
    "default is text": (more_input(default="1"), 'request[6].default: expected a finite number, found "1"'),
    "default is a list": (more_input(default=[1]), "request[6].default: expected a finite number"),
    "default of two": (more_input(shape=[3], default=[1, 2]), "request[6].default: expected one number, or 3, one for"),
    "default is a fraction": (more_input(dtype="int64", default=0.5), "request[6].default: expected an integer"),
    "default too low": (
        more_input(default=-1, minimum=0),
        "request[6].default: expected a finite number of at least 0",
    ),
    "default too high": (
        more_input(shape=[3], default=[1, 2, 3], maximum=2.5),
        "request[6].default[2]: expected a finite number of at most 2.5, found 3",
    ),
    "default beyond float32": (more_input(default=1e39), "request[6].default: expected a number of float32"),
    "inexact integer": (more_input(dtype="int64", default=2**53 + 1), "request[6].default: expected an integer from"),
    "tensor of a batch inside": (
        more_input(kind="image", shape=[3, "B"]),
        'request[6].shape: expected "B" first or nowhere',
    ),
    "input that no graph takes": (more_input(), "graphs.generate.inputs: expected the contract's"),
    "verify input": (
        change("verify", "inputs", "tau", value=1),
        "verify.inputs.tau: expected an input of the request as its key: class_labels, uniforms",
    ),
    "verify without label": (
        change("verify", "inputs", value={}),
        'key "verify.inputs.class_labels" is missing',
    ),
    "verify label": (
        change("verify", "inputs", "class_labels", 0, value=6),
        "verify.inputs.class_labels[0]: expected an integer",
    ),
    "verify no label": (
        change("verify", "inputs", "class_labels", value=[]),
        "verify.inputs.class_labels: expected at least one label",
    ),
    "verify rows": (
        change("verify", "inputs", "class_labels", value=[0]),
        "verify.token_maps: expected one row for each of 1 labels, found 2",
    ),
    "verify cfg": (
        change("verify", "inputs", "cfg_scale", value=-1),
        "verify.inputs.cfg_scale: expected 0 to 1000",
    ),
    "verify cfg for each stage": (
        change("verify", "inputs", "cfg_scale", value=[1, 2, 3]),
        "verify.inputs.cfg_scale: expected a finite number, found [1, 2, 3]",
    ),
    "verify cfg overflows": (
        change("verify", "inputs", "cfg_scale", value=1e38),
        "verify.inputs.cfg_scale: expected 0 to 1000, found 1e+38",
    ),
    "verify tensor": (
        change("verify", "inputs", "uniforms", value=0.5),
        "verify.inputs.uniforms: expected a list, found 0.5",
    ),
}
CASES = [
    pytest.param(schema, *case, id=f"{name}, schema {schema}")
    for schema, cases in ((1, {**BAD_MANIFESTS, **BAD_SCHEMA_1}), (2, {**BAD_MANIFESTS, **BAD_SCHEMA_2}))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("schema", "damage", "message"), CASES)
def test_bad_manifests_are_refused_with_their_key(damaged: Path, schema: int, damage: Callable, message: str) -> None:
    manifest = json.loads(json.dumps(read_manifest(damaged)))
    manifest = in_schema_1(manifest) if schema == 1 else manifest
    damage(manifest)
    write_manifest(damaged, manifest)
    with pytest.raises(BundleError) as caught:
        Bundle.open(damaged)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(damaged / "manifest.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("maximum", "expected"), [(None, 1000), (20, 20), (5000, 5000)])
def test_guidance_has_a_maximum(damaged: Path, maximum: float | None, expected: float) -> None:
    """Also in bundles whose manifest gives none; one that it gives holds."""
    manifest = read_manifest(damaged)
    manifest["request"][3]["maximum"] = maximum
    write_manifest(damaged, manifest)
    bundle = Bundle.open(damaged)
    Request.create(bundle, [0], cfg_scale=expected)
    with pytest.raises(RequestError, match=rf"cfg_scale {expected}\.5 is out of range: expected 0 to {expected}$"):
        Request.create(bundle, [0], cfg_scale=expected + 0.5)


def test_both_schemas_say_the_same(fake_bundle: Path, fake_v1_bundle: Path) -> None:
    """But for the schema itself: what a reader makes of them is equal."""
    new, old = (Bundle.open(folder).manifest for folder in (fake_bundle, fake_v1_bundle))
    assert (new.schema, old.schema) == (2, 1)
    assert replace(new, schema=1) == old


def test_both_schemas_make_the_same_pictures(fake_bundle: Path, fake_v1_bundle: Path) -> None:
    new, old = (Generator(folder).generate([0, 3], seed=5) for folder in (fake_bundle, fake_v1_bundle))
    assert np.array_equal(new.token_maps, old.token_maps)
    assert np.array_equal(new.images, old.images)


def test_a_bundle_of_another_family(fake_text_bundle: Path) -> None:
    manifest = Bundle.open(fake_text_bundle, verify_hashes=True).manifest
    assert (manifest.family, list(manifest.graphs)) == ("fake-text", ["stage", "decoder"])
    assert manifest.graphs["stage"].file == "stage.onnx"
    model = manifest.model
    assert (model.num_tokens, model.image_size, model.latent_size) == (9, (8, 12), (2, 3))
    assert model.stage_slices == (slice(0, 1), slice(1, 3), slice(3, 9))
    assert model.stages_in_words == "1, 1 x 2, 2 x 3"
    with pytest.raises(BundleError, match="stages of 1 x 2: expected squares"):
        _ = model.patch_nums
    with pytest.raises(BundleError, match="pictures of 8 x 12: expected squares"):
        _ = model.image_side
    tau = manifest.request[-1]
    assert (tau.shape, tau.default, tau.minimum, tau.maximum) == ((3,), (1.0,), 0.0001, 100)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "[" * 100_000, "\xff\xfe", '{"schema": NaN}'], ids=lambda text: repr(text[:8])
)
def test_what_is_no_manifest_is_refused(damaged: Path, text: str) -> None:
    (damaged / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(damaged)


def test_an_enormous_manifest_is_refused_unread(damaged: Path) -> None:
    os.truncate(damaged / "manifest.json", 10**12)  # sparse
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(damaged)


def test_a_newer_schema_names_the_version_that_reads_it(damaged: Path) -> None:
    write_manifest(damaged, {"schema": 3, "versions": {"nextscale": "0.9.0"}})
    with pytest.raises(BundleError, match=r"schema 3 is newer than schema 2.*: install nextscale 0\.9\.0 or later"):
        Bundle.open(damaged)


@pytest.mark.parametrize("versions", [None, [], {}, {"nextscale": "x\n" * 3}, {"nextscale": 4}])
def test_a_newer_schema_without_a_version_is_refused_too(damaged: Path, versions: Any) -> None:
    write_manifest(damaged, {"schema": 3, "versions": versions})
    with pytest.raises(BundleError, match="install a newer nextscale"):
        Bundle.open(damaged)


@pytest.mark.parametrize(
    "name",
    ["../weights.data", "/etc/passwd", "sub/weights.data", "..", ".", "", "c:x", "a\\b", "a\0b", "a\nb"],
    ids=repr,
)
def test_a_path_out_of_the_folder_is_refused(damaged: Path, name: str) -> None:
    manifest = read_manifest(damaged)
    manifest["files"][name] = manifest["files"]["weights.data"]
    write_manifest(damaged, manifest)
    with pytest.raises(BundleError, match="files: expected plain file names inside the bundle's folder"):
        Bundle.open(damaged)


def test_a_bundle_in_a_download_cache_runs(fake_bundle: Path, tmp_path: Path) -> None:
    cached = Bundle.open(in_download_cache(fake_bundle, tmp_path / "cache"))
    assert (cached.path / "weights.data").resolve().parent == tmp_path / "cache" / "blobs"
    assert cached.linked_data() == {"weights.data": cached.path / "weights.data"}
    found, expected = (Generator(path).generate([1, 2], seed=3) for path in (cached, fake_bundle))
    assert np.array_equal(found.images, expected.images)
    streamed = Generator(cached).generate([1, 2], seed=3, on_stage=lambda stage: None)
    assert np.array_equal(streamed.images, expected.images)


@pytest.mark.parametrize("name", ["weights.data", "stage.onnx"])
def test_one_file_may_be_a_link(damaged: Path, tmp_path: Path, name: str) -> None:
    expected = Generator(damaged).generate([1], on_stage=lambda stage: None)
    (damaged / name).rename(tmp_path / "elsewhere")
    (damaged / name).symlink_to(tmp_path / "elsewhere")
    found = Generator(damaged).generate([1], on_stage=lambda stage: None)
    assert np.array_equal(found.images, expected.images)


@pytest.mark.parametrize("name", ["weights.data", "stage.onnx", "card.md"])
def test_a_link_to_what_the_manifest_does_not_vouch_for_is_refused(damaged: Path, tmp_path: Path, name: str) -> None:
    content = bytearray((damaged / name).read_bytes())
    content[7] ^= 1
    (tmp_path / "elsewhere").write_bytes(content)
    (damaged / name).unlink()
    (damaged / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        BundleError, match=rf"{name}: a link out of the bundle's folder, to another content than the manifest's"
    ):
        Bundle.open(damaged)


def test_a_link_to_an_endless_file_is_refused(damaged: Path) -> None:
    (damaged / "weights.data").unlink()
    (damaged / "weights.data").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"weights\.data: the file is missing"):
        Bundle.open(damaged)


def test_the_folder_itself_may_be_a_link(fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fake_bundle)
    assert Bundle.open(tmp_path / "link").manifest.name == "fake-0"


@pytest.mark.parametrize("name", ["generate.onnx", "stage.onnx", "decoder.onnx", "weights.data"])
def test_a_missing_file_is_refused(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: the file is missing"):
        Bundle.open(damaged)


@pytest.mark.parametrize("card", [None, b"", b"Edited.\r\n", b"a" * 100_000], ids=["deleted", "empty", "CRLF", "long"])
def test_the_card_decides_nothing_but_the_hashes(damaged: Path, card: bytes | None) -> None:
    if card is None:
        (damaged / "card.md").unlink()
    else:
        (damaged / "card.md").write_bytes(card)
    bundle = Bundle.open(damaged)
    assert Generator(bundle).generate([0]).images.shape == (1, 12, 12, 3)
    assert list(bundle.changed_files()) == ["card.md"]
    reason = "the file is missing" if card is None else "the content was changed"
    with pytest.raises(BundleError, match=rf"card\.md: {reason}"):
        Bundle.open(damaged, verify_hashes=True)


def test_the_card_may_be_a_link_to_nothing(damaged: Path) -> None:
    (damaged / "card.md").unlink()
    (damaged / "card.md").symlink_to("../blobs/gone")
    assert Bundle.open(damaged).manifest.name == "fake-0"


@pytest.mark.parametrize("path", [3, None, b"bundle"], ids=repr)
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(BundleError, match=f"bundle {path!r}: expected a folder's path"):
        Bundle.open(path)


def test_a_truncated_file_is_refused(damaged: Path) -> None:
    os.truncate(damaged / "weights.data", 100)
    with pytest.raises(BundleError, match=r"weights\.data: 100 bytes, but the manifest says 1368"):
        Bundle.open(damaged)


def test_a_changed_file_is_found_by_its_hash(damaged: Path) -> None:
    content = bytearray((damaged / "weights.data").read_bytes())
    content[7] ^= 1
    (damaged / "weights.data").write_bytes(content)
    assert list(Bundle.open(damaged).changed_files()) == ["weights.data"]
    with pytest.raises(BundleError, match=r"weights\.data: the content was changed"):
        Bundle.open(damaged, verify_hashes=True)


@pytest.mark.parametrize("folder", ["nothing", "card.md", "a\0b"])
def test_what_is_no_folder_is_refused(fake_bundle: Path, folder: str) -> None:
    with pytest.raises(BundleError, match="the bundle's path is empty"):
        Bundle.open("")
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(fake_bundle / folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: the file is missing"):
        Bundle.open(tmp_path)


def test_the_folder_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match=rf"^{tmp_path}/manifest\.json: the file is missing; expected a bundle"):
        Bundle.open(".")


def test_a_folder_is_named_without_control_characters(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path / "red\x1b[31m")
    assert str(caught.value) == f"{tmp_path}/red\\x1b[31m: no such folder; expected a bundle made by `nextscale build`"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("goldfish, Carassius auratus", 0), ("GoldFish", 0), ("carassius auratus", 0), ("tabby_cat", 1),
        (" tabby  cat ", 1), ("4", 4), (4, 4), (5, 5), ("0", 0), ("null", 5), (" NULL", 5), (np.uint8(4), 4),
        (np.array(4), 4),
    ],
)  # fmt: skip
def test_class_label(fake_bundle: Path, name: str | int, label: int) -> None:
    assert Bundle.open(fake_bundle).class_label(name) == label


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("goldfsh", 'no class is named "goldfsh"; nearest: goldfish (0)'),
        ("retriever", 'no class is named "retriever"; nearest: golden retriever (4)'),
        ("GOLDEN", "nearest: golden retriever (4)"),
        ("carassius auratus, goldfish", "nearest: carassius auratus (0)"),
        ("a\x1b[31m", r'no class is named "a\x1b[31m"'),
        pytest.param("x" * 10_000, 'no class is named "xxxxx', id="long text"),
        (True, "class True: expected an integer or a class name"),
        (np.True_, "class True: expected an integer or a class name"),
        (b"4", "class b'4': expected an integer or a class name"),
        (np.array([1]), "class int64 [1]: expected an integer or a class name"),
        pytest.param(10**5000, "class about 10^5000 is out of range", id="huge"),
        ("xyzzy", "`nextscale inspect DIR --classes` lists the names"),
        ("", "lists the names"),
        ("crane", 'class "crane" is the name of 2 classes: give an id of 2 (crane), 3 (crane)'),
        (6, "class 6 is out of range: expected 0 to 4 (5 is the null class)"),
        (-1, "class -1 is out of range"),
        ("-1", 'no class is named "-1"'),
        ("99999999999999999999", "out of range"),
        ("9" * 5000, "class 99999999999999999999… is out of range: expected 0 to 4 (5 is the null class)"),
        (1.5, "class 1.5: expected an integer or a class name"),
        (None, "class None: expected an integer or a class name"),
    ],
)
def test_unknown_classes_are_refused(fake_bundle: Path, name: Any, message: str) -> None:
    with pytest.raises(ClassLabelError) as caught:
        Bundle.open(fake_bundle).class_label(name)
    assert message in str(caught.value)


def test_without_class_names_ids_are_asked_for(tmp_path: Path) -> None:
    bundle = Bundle.open(write_fake_bundle(tmp_path / "nameless", class_names=None))
    assert bundle.class_name(3) == "3"
    with pytest.raises(ClassLabelError, match="no class names; give an id from 0 to 4"):
        bundle.class_label("goldfish")
    assert bundle.class_label("null") == 5


def test_a_class_named_null_is_that_class(tmp_path: Path) -> None:
    names = ["zero", "nothing, null", "two", "three", "four"]
    assert Bundle.open(write_fake_bundle(tmp_path / "null", class_names=names)).class_label("null") == 1


def test_labels_without_a_name_are_their_own(fake_bundle: Path) -> None:
    bundle = Bundle.open(fake_bundle)
    assert [bundle.class_name(label) for label in (1, 5, np.int64(1))] == ["tabby cat", "5", "tabby cat"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, "class -1 is out of range: expected 0 to 4 (5 is the null class)"),
        (6, "class 6 is out of range: expected 0 to 4 (5 is the null class)"),
        (None, "class None: expected an integer"),
        ("goldfish", "class 'goldfish': expected an integer"),
        ([], "class []: expected an integer"),
        (1.5, "class 1.5: expected an integer"),
    ],
    ids=repr,
)
def test_what_is_no_class_has_no_name(fake_bundle: Path, label: Any, message: str) -> None:
    with pytest.raises(ClassLabelError) as caught:
        Bundle.open(fake_bundle).class_name(label)
    assert str(caught.value) == message


def test_an_unknown_class_among_many_long_names_is_told_soon() -> None:
    """8 MB of names, of which comparing each with a text takes five seconds."""
    names = [f"{'long name ' * 16}{number}, {'other ' * 26}{number}" for number in range(25_000)]
    begin = time.monotonic()
    for text in ("zzzzzzzz" * 10, "other long zzzz name " * 4):
        assert "lists the names" in nearest_names(text, names)
    assert "nearest: long" in nearest_names("name 24999", names)
    assert label_of_name(names[7].upper(), names) == 7
    assert time.monotonic() - begin < 6


def test_spelling_is_compared_among_the_first_names(fake_bundle: Path) -> None:
    names = [f"kind {number}" for number in range(50_000)] + ["wombat"]
    assert nearest_names("wombatt", names) == "`nextscale inspect DIR --classes` lists the names"
    assert nearest_names("wombatt", names[-100:]) == "nearest: wombat (99)"


def test_a_manifest_that_is_a_pipe_is_refused(damaged: Path, make_fifo: Callable[[Path], Path]) -> None:
    path = make_fifo(damaged / "manifest.json")
    with pytest.raises(BundleError, match=f"^{path}: not a regular file; give the path of one$"):
        Bundle.open(damaged)
