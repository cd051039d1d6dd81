import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import CLASS_NAMES, L, read_manifest, write_fake_bundle, write_manifest

from nextscale.runtime import Bundle, BundleError, ClassLabelError


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
BAD_MANIFESTS = {
    "no schema": (change("schema", value=...), 'key "schema" is missing'),
    "schema is text": (change("schema", value="1"), 'schema: expected an integer of at least 1, found "1"'),
    "no model": (change("model", value=...), 'key "model" is missing'),
    "model is a list": (change("model", value=[]), "model: expected a JSON object, found []"),
    "no depth": (change("model", "depth", value=...), 'key "model.depth" is missing'),
    "negative depth": (change("model", "depth", value=-1), "model.depth: expected an integer of at least 1, found -1"),
    "depth is true": (change("model", "depth", value=True), "model.depth: expected an integer"),
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
    "names too few": (change("class_names", value=["a"]), "class_names: expected 5 names, as model.num_classes says"),
    "name with escape": (
        change("class_names", 1, value="\x1b[2J"),
        "class_names[1]: expected a line of printable text",
    ),
    "no recipe name": (change("recipe", value={}), 'key "recipe.name" is missing'),
    "no decoder": (change("graphs", "decoder", value=...), 'key "graphs.decoder" is missing'),
    "graph not listed": (
        change("graphs", "stage", "file", value="other.onnx"),
        'graphs.stage.file: expected a plain file name that "files" lists, found "other.onnx"',
    ),
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
    "verify label": (change("verify", "class_labels", 0, value=6), "verify.class_labels[0]: expected an integer"),
    "verify rows": (change("verify", "class_labels", value=[0]), "verify.token_maps: expected one row for each of 1"),
    "verify tokens": (change("verify", "token_maps", 0, value=[0]), "verify.token_maps[0]: expected a list of 14"),
    "verify token": (change("verify", "token_maps", 0, 3, value=16), "verify.token_maps[0][3]: expected an integer"),
    "verify cfg": (change("verify", "cfg_scale", value=-1), "verify.cfg_scale: expected a number of at least 0"),
    "verify cfg beyond floats": (change("verify", "cfg_scale", value=10**400), "verify.cfg_scale: expected a number"),
}


@pytest.mark.parametrize(("damage", "message"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_bad_manifests_are_refused_with_their_key(damaged: Path, damage: Callable, message: str) -> None:
    manifest = read_manifest(damaged)
    damage(manifest)
    write_manifest(damaged, manifest)
    with pytest.raises(BundleError) as caught:
        Bundle.open(damaged)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(damaged / "manifest.json"))
    assert "\n" not in str(caught.value)


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
    write_manifest(damaged, {"schema": 2, "versions": {"nextscale": "0.9.0"}})
    with pytest.raises(BundleError, match=re.escape("schema 2 is newer than schema 1") + '.*"nextscale>=0.9.0"'):
        Bundle.open(damaged)


@pytest.mark.parametrize("versions", [None, [], {}, {"nextscale": "x\n" * 3}, {"nextscale": 4}])
def test_a_newer_schema_without_a_version_is_refused_too(damaged: Path, versions: Any) -> None:
    write_manifest(damaged, {"schema": 2, "versions": versions})
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


def test_a_link_out_of_the_folder_is_refused(damaged: Path) -> None:
    outside = (damaged / "weights.data").rename(damaged.parent / "weights.data")
    (damaged / "weights.data").symlink_to(outside)
    with pytest.raises(
        BundleError,
        match=r"weights\.data: the file is a link out of the bundle's folder, as in a download cache; .*copy",
    ):
        Bundle.open(damaged)


def test_the_folder_itself_may_be_a_link(fake_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(fake_bundle)
    assert Bundle.open(tmp_path / "link").manifest.name == "fake-0"


@pytest.mark.parametrize("name", ["generate.onnx", "stage.onnx", "decoder.onnx", "weights.data", "card.md"])
def test_a_missing_file_is_refused(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: the file is missing"):
        Bundle.open(damaged)


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
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(fake_bundle / folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: the file is missing"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("goldfish, Carassius auratus", 0), ("GoldFish", 0), ("carassius auratus", 0), ("tabby_cat", 1),
        (" tabby  cat ", 1), ("4", 4), (4, 4), (5, 5), ("0", 0),
    ],
)  # fmt: skip
def test_class_label(fake_bundle: Path, name: str | int, label: int) -> None:
    assert Bundle.open(fake_bundle).class_label(name) == label


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("goldfsh", 'no class is named "goldfsh"; nearest: goldfish (0)'),
        ("retriever", 'no class is named "retriever"; nearest: golden retriever (4)'),
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
