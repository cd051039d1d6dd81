"""Write a conformance suite: bundles, requests with the results that the Python runtime gives here, and damage.

    PYTHONPATH=tests python -m conformance.make_suite OUT [--family text] [--bundle DIR]...

README.md describes what is written and who reads it.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from conformance.damaged_manifests import damaged_manifests
from conformance.edit_cases import blend_cases, box_case, edit_case, edit_results, kept_tokens_cases, pictures
from fake_bundle import in_download_cache, read_manifest, write_fake_bundle, write_manifest
from fake_fused_bundle import write_fake_fused_bundle
from fake_text_bundle import C as TEXT_WIDTH
from fake_text_bundle import write_fake_text_bundle

from nextscale.measure.provenance import versions
from nextscale.runtime import Bundle, BundleError, Generation, Generator, SessionOptions, StageResult
from nextscale.runtime._machine import describe_machine
from nextscale.runtime._manifest import Manifest
from nextscale.runtime._manifest_reader import parse_manifest
from nextscale.runtime._uniforms import uniforms

CASES = Path(__file__).with_name("cases.json")
PARAMETERS = {
    "seed": "0",
    "first_image": "0",
    "cfg_scale": None,
    "top_k": None,
    "top_p": None,
    "forced_tokens": None,
    "uniforms": None,
    "more_smooth": False,
    "inputs": {},
    "batch_size": None,
}
FAKES = {
    "fake": write_fake_bundle,
    "fake-v1": partial(write_fake_bundle, schema=1),
    "fake-text": write_fake_text_bundle,
    "fake-fused": partial(write_fake_fused_bundle, encoder=True, smooth=True),
}
# Those of whose manifests damaged ones are made; the others are damaged in the family of text.
DAMAGED_FAKES = ("fake", "fake-v1", "fake-fused")
LOADED = ["generate", "stage", "decoder"]
# Manifests of each of them.
DAMAGED, DAMAGE_SEED = 2000, 0
# With which each request, edit and encoding is made.
THREADS = (1, 2)


def make_suite(
    out: Path,
    bundles: Sequence[Path] = (),
    tiny: bool = True,
    damaged: int = DAMAGED,
    ops_library: Path | None = None,
) -> Path:
    """Write the suite into the new folder `out`.

    Args:
        out: the folder; must not exist.
        bundles: further bundles, which the suite names by their absolute paths.
        tiny: also build the tiny model's bundles in float32 and int8 (needs torch).
        damaged: how many damaged manifests of each fake bundle.
        ops_library: of nextscale-ops, to run fused graphs with; without it the suite has no case that runs them.
    Returns:
        the path of suite.json.
    """
    cases = json.loads(CASES.read_text())
    out.mkdir(parents=True)
    fakes = {name: write(out / "bundles" / name) for name, write in FAKES.items()}
    further = [*(_build_tiny(out) if tiny else []), *(str(path.resolve()) for path in bundles)]
    names = ["bundles/fake", "bundles/fake-v1", "bundles/fake-fused", *further]
    library = None if ops_library is None else ops_library.resolve()
    encoders = [name for name in names if "encoder" in Bundle.open(out / name).manifest.graphs]
    smooth = [name for name in encoders if Bundle.open(out / name).manifest.input_of_kind("smooth_uniform")]
    fake_model = Bundle.open(fakes["fake-fused"]).model
    altered = [str(path.relative_to(out)) for path in _altered(fakes["fake"], out / "bundles")]
    suite = {
        "made_with": {**versions(), "cpu": describe_machine().cpu},
        "defaults": {"class_labels": [], **PARAMETERS},
        "philox": cases["philox"],
        "uniforms": cases["uniforms"],
        "requests": [
            *(request for name in names for request in requests(out, name, cases["requests"], library)),
            *(request for name in smooth for request in requests(out, name, cases["smooth_requests"], library)),
            *(request for name in altered for request in requests(out, name, cases["requests"][:2])),
            *requests(out, "bundles/fake-text", cases["text_requests"]),
        ],
        **{
            group: [{"bundle": "bundles/fake", **PARAMETERS, **case} for case in cases[group]]
            for group in ("request_errors", "cancellations")
        },
        "encodes": [case for name in encoders for case in encodes(out, name, cases["encodes"], library)],
        "encode_errors": [
            {
                "bundle": "bundles/fake-fused",
                "ops": "stock",
                "ops_library": None,
                "seed": "0",
                "count": 1,
                "size": list(fake_model.image_size),
                **case,
            }
            for case in cases["encode_errors"]
        ],
        "edits": [
            *(case for name in encoders for case in edits(out, name, cases["edits"], library)),
            *(case for name in smooth for case in edits(out, name, cases["smooth_edits"], library)),
        ],
        "edit_errors": [edit_error(out, case) for case in cases["edit_errors"]],
        "boxes": [{"bundle": "bundles/fake-fused", **box_case(case, fake_model)} for case in cases["boxes"]],
        "kept_tokens": list(kept_tokens_cases()),
        "blends": list(blend_cases()),
        "class_names": [{"bundle": "bundles/fake", **case} for case in cases["class_names"]],
        "threads_errors": [{"bundle": "bundles/fake", **case} for case in cases["threads_errors"]],
        "default_threads": [_make_tree(out, number, case) for number, case in enumerate(cases["default_threads"])],
        "broken_bundles": [
            break_bundle(out, number, fakes[case.get("of", "fake")], case)
            for number, case in enumerate(cases["broken_bundles"])
        ],
        "variants": list(_variants(out, cases["variants"], library)),
        "damaged_manifests": damage_manifests(out, [fakes[name] for name in DAMAGED_FAKES], damaged),
    }
    path = out / "suite.json"
    path.write_text(json.dumps(suite, indent=1) + "\n")
    return path


def arguments(request: dict[str, Any]) -> dict[str, Any]:
    """A request of the suite as keyword arguments of `Generator.generate`."""
    rows = request["uniforms"]
    return {
        "class_labels": request["class_labels"] or None,
        "seed": int(request["seed"]),
        "first_image": int(request["first_image"]),
        "cfg_scale": _number(request["cfg_scale"]),
        "top_k": request["top_k"],
        "top_p": _number(request["top_p"]),
        "forced_tokens": request["forced_tokens"],
        "uniforms": None if rows is None else _floats(rows),
        "more_smooth": request["more_smooth"],
        "inputs": {name: _value(value) for name, value in request["inputs"].items()},
        "batch_size": request["batch_size"],
        # Which requests of the family of text alone have.
        **{name: request.get(name) for name in ("prompts", "negative", "area", "ratio", "tau")},
    }


def _number(value: Any) -> Any:
    """A number, or what stands for one that JSON lacks; lists stay lists."""
    return {"nan": np.nan, "inf": np.inf}[value] if isinstance(value, str) else value


def _floats(rows: Any) -> Any:
    return [_floats(row) for row in rows] if isinstance(rows, list) else float(_number(rows))


def _value(value: Any) -> Any:
    """A tensor is an object, texts of several lengths are one with a list of tensors, any other input is a scalar."""
    if not isinstance(value, dict):
        return value
    if "texts" in value:
        return [np.array(text, value["dtype"]) for text in value["texts"]]
    return np.array(value["values"], value["dtype"])


def results(generator: Generator, request: dict[str, Any], streaming: bool) -> dict[str, Any]:
    """What a request gives, in the form of the suite's `expected`; previews only when streaming."""
    previews: list[str] = []

    def on_stage(stage: StageResult) -> None:
        previews.append(hashlib.sha256(stage.preview().tobytes()).hexdigest())

    result: Generation = generator.generate(**arguments(request), on_stage=on_stage if streaming else None)
    found = {
        "token_maps": result.token_maps.tolist(),
        "images_sha256": [hashlib.sha256(image.tobytes()).hexdigest() for image in result.images],
    }
    return {**found, "previews_sha256": previews} if streaming else found


def _altered(fake: Path, folder: Path) -> Iterator[Path]:
    """The fake bundle in ways that change nothing: in a download cache, and with a card that someone edited."""
    yield in_download_cache(fake, folder / "fake-cached")
    edited = shutil.copytree(fake, folder / "fake-edited")
    (edited / "card.md").write_bytes(b"Edited.\r\n")
    yield edited


def _build_tiny(out: Path) -> Iterator[str]:
    from tiny_model import build_tiny

    for precision in ("fp32", "int8"):
        build_tiny(out / "bundles" / f"tiny-{precision}", precision)
        yield f"bundles/tiny-{precision}"


def requests(
    out: Path, name: str, cases: Sequence[dict[str, Any]], ops_library: Path | None = None
) -> Iterator[dict[str, Any]]:
    for generators, graphs in _generators(out, name, ops_library):
        for request in requests_of(generators, cases):
            yield {"bundle": name, **graphs, **request}


def requests_of(generators: Sequence[Generator], cases: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Cases of cases.json as requests, with what generators (see `by_threads`) make of them."""
    for case in cases:
        request = request_of(case, generators[0].bundle)
        found = [results(generator, request, streaming=False) for generator in generators]
        previews = [results(generator, request, streaming=True)["previews_sha256"] for generator in generators]
        yield from by_threads(
            request, "expected", [{**one, "previews_sha256": those} for one, those in zip(found, previews, strict=True)]
        )


def by_threads(case: dict[str, Any], key: str, found: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """A case with what was found by one thread, for any number of them, or by each of THREADS.

    More threads add large sums in another order: the last bits of a sum then show in `more_smooth`, which mixes tokens.
    """
    if all(one == found[0] for one in found):
        yield {**case, "threads": list(THREADS), key: found[0]}
    else:
        for threads, one in zip(THREADS, found, strict=True):
            yield {**case, "threads": [threads], key: one}


def _generators(out: Path, name: str, ops_library: Path | None) -> Iterator[tuple[list[Generator], dict[str, Any]]]:
    """With the stock graphs and, given the library, with the fused ones where the bundle has them.

    Of the suite's own small models one generator, since any number of threads must give the same.
    """
    bundle = Bundle.open(out / name)
    fused = ops_library is not None and any(graph.fused for graph in bundle.manifest.graphs.values())
    for ops, library in (("stock", None), ("fused", ops_library))[: 2 if fused else 1]:
        generators = [
            Generator(bundle, SessionOptions(threads=threads, ops=ops, ops_library=str(library or "")))
            for threads in (THREADS if Path(name).is_absolute() else THREADS[:1])
        ]
        yield generators, {"ops": ops, "ops_library": library and str(library)}


def request_of(case: dict[str, Any], bundle: Bundle, index: int | None = None) -> dict[str, Any]:
    """A case of cases.json as a request of a bundle; index: of its size, where the case does not tell it."""
    manifest = bundle.manifest
    index = case.get("inputs", {}).get("size", index)
    if index is None:
        index = manifest.choose_size(case.get("area"), case.get("ratio")) if manifest.sizes else 0
    return _resolved({"class_labels": [], **PARAMETERS, **case}, manifest.of_size(index))


def encodes(
    out: Path, name: str, cases: Sequence[dict[str, Any]], ops_library: Path | None
) -> Iterator[dict[str, Any]]:
    for generators, graphs in _generators(out, name, ops_library):
        size = generators[0].bundle.model.image_size
        for case in cases:
            images = pictures(int(case["seed"]), case["count"], size)
            found = [generator.encode(images).tolist() for generator in generators]
            yield from by_threads({"bundle": name, **case, **graphs, "size": list(size)}, "token_maps", found)


def edits(out: Path, name: str, cases: Sequence[dict[str, Any]], ops_library: Path | None) -> Iterator[dict[str, Any]]:
    for generators, graphs in _generators(out, name, ops_library):
        bundle = generators[0].bundle
        for case in cases:
            edit = edit_case(request_of(case, bundle), bundle.model)
            found = [edit_results(generator, edit, arguments(edit), streaming=True) for generator in generators]
            yield from by_threads({"bundle": name, **edit, **graphs}, "expected", found)


def edit_error(out: Path, case: dict[str, Any]) -> dict[str, Any]:
    name = case.get("bundle", "bundles/fake-fused")
    bundle = Bundle.open(out / name)
    edit = edit_case(request_of(case, bundle), bundle.model)
    return {"bundle": name, "ops": "stock", "ops_library": None, "cancelled": False, **edit}


def _variants(out: Path, cases: Sequence[dict[str, Any]], ops_library: Path | None) -> Iterator[dict[str, Any]]:
    write_fake_fused_bundle(out / "bundles" / "fake-newer", {"nextscale": 99})
    write_fake_fused_bundle(out / "bundles" / "fake-foreign", {"elsewhere": 1, "nextscale": 1})
    for case in cases:
        if case["ops_library"] != "given":
            yield case
        elif ops_library is not None:
            yield {**case, "ops_library": str(ops_library)}


def _resolved(case: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """The request with what cases.json says of any model put into this model's numbers."""
    request, model = {key: value for key, value in case.items() if key != "text"}, manifest.model
    request["class_labels"] = [model.num_classes if label == "null" else label for label in case["class_labels"]]
    if "text" in case:
        request["inputs"] = {**case["inputs"], **_text(case["text"])}
    subjects = case.get("text") or case.get("prompts") or case["class_labels"]
    images, forced, numbers = len(subjects), case["forced_tokens"], case["uniforms"]
    row, values = manifest.forced_tokens.row_shape, manifest.forced_tokens.row_values
    if forced is not None:
        stages = model.num_stages if forced["stages"] == "all" else forced["stages"]
        tokens = (
            7 * np.arange(values).reshape(row) + 3 * np.arange(images).reshape(-1, *[1] * len(row))
        ) % model.vocab_size
        tokens[:, model.stage_slices[stages - 1].stop :] = -1
        request["forced_tokens"] = tokens.tolist()
    if numbers is not None:
        array = (
            np.full((images, values), numbers["constant"], np.float32)
            if "constant" in numbers
            else uniforms(int(numbers["seed"]), range(images), values)
        )
        request["uniforms"] = array.reshape(images, *row).tolist()
    return request


def _text(lengths: Sequence[int]) -> dict[str, Any]:
    """Texts of so many tokens, padded to the longest."""
    images, tokens, width = np.ogrid[: len(lengths), : max(lengths), :TEXT_WIDTH]
    features = np.sin(3.0 * images + 5.0 * tokens + width).astype(np.float32).astype(np.float64)
    mask = (tokens[..., 0] < np.array(lengths)[:, None]).astype(np.int64)
    return {
        "text_features": {"dtype": "float32", "values": features.tolist()},
        "text_mask": {"dtype": "int64", "values": mask.tolist()},
    }


def _make_tree(out: Path, number: int, case: dict[str, Any]) -> dict[str, Any]:
    """Write the files that tell of CPUs below a root folder of their own."""
    root = out / "cpus" / f"{number:02d}"
    root.mkdir(parents=True)
    for name, text in case["files"].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    expected = {key: case[key] for key in ("threads", "cpus") if key in case}
    return {"name": case["name"], "root": str(root.relative_to(out)), **expected}


def break_bundle(out: Path, number: int, fake: Path, case: dict[str, Any]) -> dict[str, Any]:
    folder = out / "broken" / f"{number:02d}"
    shutil.copytree(fake, folder)
    for change in case["changes"]:
        _apply(folder, change)
    return {
        "name": case["name"],
        "bundle": str(folder.relative_to(out)),
        "step": case["step"],
        "graphs": case.get("graphs", LOADED),
        "error": "BundleError",
        "contains": case["contains"],
    }


def _apply(folder: Path, change: dict[str, Any]) -> None:
    """Make one change of cases.json to a bundle."""
    [(kind, value)] = change.items()
    if kind == "remove_folder":
        shutil.rmtree(folder)
    elif kind == "remove":
        (folder / value).unlink()
    elif kind == "write":
        (folder / value[0]).write_text(value[1])
    elif kind == "write_repeated":
        (folder / value[0]).write_text(value[1] * value[2])
    elif kind == "truncate":
        os.truncate(folder / value[0], value[1])
    elif kind == "flip_byte":
        content = bytearray((folder / value).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / value).write_bytes(content)
    elif kind == "copy":
        shutil.copyfile(folder / value[0], folder / value[1])
    elif kind == "link":
        (folder / value[0]).symlink_to(value[1])
    elif kind == "link_out":
        outside = folder.with_name(f"{folder.name}-outside")
        (folder / value).rename(outside)
        (folder / value).symlink_to(Path("..") / outside.name)
    else:
        manifest = read_manifest(folder)
        _change_manifest(manifest, folder, kind, value)
        write_manifest(folder, manifest)


def _change_manifest(manifest: dict[str, Any], folder: Path, kind: str, value: Any) -> None:
    if kind == "update_files":
        for name in manifest["files"]:
            content = (folder / name).read_bytes()
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return
    *parents, last = value if kind == "delete" else value[0]
    owner: Any = manifest
    for key in parents:
        owner = owner[key]
    if kind == "set":
        owner[last] = value[1]
    elif kind == "repeat":
        owner[last] = value[1] * value[2]
    elif kind == "delete":
        del owner[last]
    elif kind == "append":
        owner[last].append(value[1])
    else:
        raise ValueError(f"unknown change {kind!r}")


def damage_manifests(out: Path, bundles: Sequence[Path], count: int) -> list[dict[str, Any]]:
    """Write so many of each, and tell which are a manifest all the same, as damage to a comment would leave it."""
    (out / "damaged").mkdir()
    cases: list[dict[str, Any]] = []
    for text in (text for bundle in bundles for text in damaged_manifests(read_manifest(bundle), count, DAMAGE_SEED)):
        name = f"damaged/{len(cases):05d}.json"
        (out / name).write_bytes(text)
        try:
            parse_manifest(text)
        except BundleError as error:
            cases.append({"file": name, "error": "BundleError", "message": str(error)})
        else:
            cases.append({"file": name, "error": None})
    return cases


def _installed_ops_library() -> Path | None:
    try:
        import nextscale_ops
    except ImportError:
        return None
    return nextscale_ops.library_path()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument(
        "--family", choices=("classes", "text"), default="classes", help="what to make pictures of; text: see README.md"
    )
    parser.add_argument("--bundle", type=Path, action="append", default=[], metavar="DIR", help="one more bundle")
    parser.add_argument("--no-tiny", action="store_true", help="leave out the bundles whose building needs torch")
    parser.add_argument(
        "--damaged", type=int, default=DAMAGED, metavar="N", help="damaged manifests of each fake bundle"
    )
    parser.add_argument(
        "--ops-library",
        type=Path,
        default=_installed_ops_library(),
        metavar="FILE",
        help="the library of nextscale-ops",
    )
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists already; name a new folder")
    if options.family == "text":
        from conformance.text_suite import make_text_suite

        print(make_text_suite(options.out, options.damaged))
        return
    print(make_suite(options.out, options.bundle, not options.no_tiny, options.damaged, options.ops_library))


if __name__ == "__main__":
    main()
