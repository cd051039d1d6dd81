from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from nextscale.export import bundle_writer
from nextscale.export.bundle_writer import ALIGNMENT, EXTERNAL_FROM_BYTES, WEIGHTS_FILE, write_graphs
from nextscale.export.graph_builder import add_output, finish, new_builder
from nextscale.runtime import Bundle
from nextscale.runtime._errors import OutputError
from nextscale.runtime._var_request import var_request


def refuse(message: str) -> pytest.RaisesExc[OutputError]:
    return pytest.raises(OutputError, match=message)


# write_graphs


def small_model(name: str, **weights: np.ndarray | ir.Tensor) -> ir.Model:
    """x + each of the weights, all of one shape."""
    builder = new_builder(name)
    shape = next(iter(weights.values())).shape
    x = builder.input("x", ir.DataType.FLOAT, list(shape))
    for weight, array in weights.items():
        tensor = array if isinstance(array, ir.Tensor) else ir.tensor(array, name=weight)
        x = builder.op.Add(x, builder.initializer(tensor, weight, qualify=False))
    add_output(builder, x, "y", ir.DataType.FLOAT, list(shape))
    return finish(builder)


def references(path: Path) -> dict[str, dict[str, str]]:
    """What each externally stored initializer of a graph file says."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {
        t.name: {entry.key: entry.value for entry in t.external_data}
        for t in tensors
        if t.data_location == onnx.TensorProto.EXTERNAL
    }


def test_a_tensor_of_several_graphs_is_stored_once(tmp_path: Path) -> None:
    shared = ir.tensor(np.arange(1000, dtype=np.float32))
    own = np.arange(1000, dtype=np.float32)  # equal, in another array
    write_graphs(tmp_path, {"a": small_model("a", w=shared), "b": small_model("b", v=shared, own=own)})
    a, b = references(tmp_path / "a.onnx"), references(tmp_path / "b.onnx")
    assert a["w"] == b["v"] == b["own"]
    assert a["w"]["location"] == WEIGHTS_FILE
    assert (tmp_path / WEIGHTS_FILE).stat().st_size == 4000
    (loaded,) = onnx.load(tmp_path / "a.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded), own)


def test_equal_bytes_of_another_shape_are_another_tensor(tmp_path: Path) -> None:
    arrays = (np.zeros(400, np.float32), np.zeros((20, 20), np.float32), np.zeros(400, np.float32))
    models = {f"m{i}": small_model(f"m{i}", w=array) for i, array in enumerate(arrays)}
    write_graphs(tmp_path, models)
    offsets = [references(tmp_path / f"m{i}.onnx")["w"]["offset"] for i in range(3)]
    assert offsets == ["0", str(ALIGNMENT), "0"]


def test_offsets_are_aligned_and_lengths_exact(tmp_path: Path) -> None:
    arrays = {f"w{i}": np.full(300 + i, i, np.float32) for i in range(4)}
    models = {name: small_model(name, **{name: array}) for name, array in arrays.items()}
    write_graphs(tmp_path, models)
    for i, name in enumerate(arrays):
        (entry,) = references(tmp_path / f"{name}.onnx").values()
        assert int(entry["offset"]) == i * ALIGNMENT
        assert int(entry["length"]) == 4 * (300 + i)


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    small, large = (np.ones(size // 4, np.float32) for size in (EXTERNAL_FROM_BYTES - 4, EXTERNAL_FROM_BYTES))
    write_graphs(tmp_path, {"small": small_model("small", w=small), "large": small_model("large", w=large)})
    assert not references(tmp_path / "small.onnx")
    assert set(references(tmp_path / "large.onnx")) == {"w"}


def test_transposed_weights_are_written_in_their_own_order(tmp_path: Path) -> None:
    array = np.arange(600, dtype=np.float32).reshape(20, 30).T
    write_graphs(tmp_path, {"a": small_model("a", w=array)})
    (loaded,) = onnx.load(tmp_path / "a.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded), array)


def test_an_invalid_graph_is_not_written(tmp_path: Path) -> None:
    model = small_model("a", w=np.ones(3, np.float32))
    model.graph.outputs[0].dtype = ir.DataType.INT64
    with pytest.raises(onnx.shape_inference.InferenceError):
        write_graphs(tmp_path, {"a": model})


# Whole bundles

ROLES = ("generate", "stage", "decoder", "encoder")


def test_each_weight_of_a_bundle_is_stored_once(tiny_bundle: Path) -> None:
    """The single file refers to the very bytes of the streaming graphs, and no byte belongs to two tensors."""
    found = {name: references(tiny_bundle / f"{name}.onnx") for name in ROLES}
    separate = {f"{graph}/{name}": entry for graph in ("stage", "decoder") for name, entry in found[graph].items()}
    assert found["generate"] == separate
    entries = [*separate.values(), *found["encoder"].values()]
    extents = sorted({(int(entry["offset"]), int(entry["length"])) for entry in entries})
    assert all(begin % ALIGNMENT == 0 for begin, _ in extents)
    ends = [begin + length for begin, length in extents]
    assert all(end <= begin < end + ALIGNMENT for end, (begin, _) in zip(ends, extents[1:], strict=False))
    assert ends[-1] == (tiny_bundle / WEIGHTS_FILE).stat().st_size


def is_int8(bundle: Path) -> bool:
    recipe: str = json.loads((bundle / "manifest.json").read_text())["recipe"]["name"]
    return recipe != "fp32"


def test_the_fused_graphs_read_the_weights_of_the_stock_ones(int8_bundle: Path) -> None:
    """All that they add are a few constants of channels, less than a twentieth."""
    size, added = (int8_bundle / WEIGHTS_FILE).stat().st_size, 0
    stock = {entry["offset"] for name in ROLES for entry in references(int8_bundle / f"{name}.onnx").values()}
    for name in ROLES:
        fused = references(int8_bundle / f"{name}.fused.onnx")
        assert any(name.endswith(".weight.codes") or ".codes" in name for name in fused)
        added += sum(int(entry["length"]) for entry in fused.values() if entry["offset"] not in stock)
    assert added < size / 20


def test_the_manifest_tells_sizes_and_hashes(tiny_bundle: Path) -> None:
    files = json.loads((tiny_bundle / "manifest.json").read_text())["files"]
    names = {path.name for path in tiny_bundle.iterdir()} - {"manifest.json"}
    assert names == files.keys()
    fused = {f"{role}.fused.onnx" for role in ROLES} if is_int8(tiny_bundle) else set()
    assert names - fused == {"card.md", *(f"{role}.onnx" for role in ROLES), WEIGHTS_FILE}
    for name, info in files.items():
        content = (tiny_bundle / name).read_bytes()
        assert info == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    Bundle.open(tiny_bundle, verify_hashes=True)


def test_the_manifest_lists_the_request_and_the_variants(tiny_bundle: Path) -> None:
    document = json.loads((tiny_bundle / "manifest.json").read_text())
    assert (document["schema"], document["family"]) == (2, "var")
    assert [item["kind"] for item in document["request"]] == [
        "label",
        "uniform",
        "forced_tokens",
        *["scalar"] * 3,
        "smooth_uniform",
    ]
    for role in ROLES:
        variants = {"stock": {"file": f"{role}.onnx"}}
        if is_int8(tiny_bundle):
            variants["fused"] = {"file": f"{role}.fused.onnx", "operators": {"nextscale": 1}}
        assert document["graphs"][role]["variants"] == variants
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.request == var_request(manifest.model)


def test_completing_replaces_tokens_recipe_and_card_alone(tmp_path: Path) -> None:
    files = {"a": {"size": 1, "sha256": "x"}, "card.md": {}}
    manifest = {"name": "a", "recipe": {"name": "b"}, "files": files, "verify": {"seed": 3, "token_maps": [[0]]}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    bundle_writer.complete_manifest(tmp_path, [[7]], [[8]], {"name": "c"}, "# card\n")
    completed = json.loads((tmp_path / "manifest.json").read_text())
    files["card.md"] = {"size": 7, "sha256": hashlib.sha256(b"# card\n").hexdigest()}
    assert completed == {
        "name": "a",
        "recipe": {"name": "c"},
        "files": files,
        "verify": {"seed": 3, "token_maps": [[7]], "encoded": [[8]]},
    }
