"""Write a conformance suite: bundles, requests with the results that the Python runtime gives here, and damage.

    PYTHONPATH=tests python -m conformance.make_suite OUT [--bundle DIR]...

README.md describes what is written and who reads it.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conformance.damaged_manifests import damaged_manifests
from fake_bundle import read_manifest, write_fake_bundle, write_manifest

from nextscale.measure.provenance import versions
from nextscale.runtime import Bundle, BundleError, Generation, Generator, SessionOptions, StageResult
from nextscale.runtime.machine import describe_machine
from nextscale.runtime.manifest import ModelInfo, parse_manifest
from nextscale.runtime.uniforms import uniforms

CASES = Path(__file__).with_name("cases.json")
PARAMETERS = {
    "seed": "0",
    "first_image": "0",
    "cfg_scale": 4.0,
    "top_k": None,
    "top_p": 0.96,
    "forced_tokens": None,
    "uniforms": None,
    "batch_size": None,
}
DAMAGED, DAMAGE_SEED = 3000, 0


def make_suite(out: Path, bundles: Sequence[Path] = (), tiny: bool = True, damaged: int = DAMAGED) -> Path:
    """Write the suite into the new folder `out`.

    Args:
        out: the folder; must not exist.
        bundles: further bundles, which the suite names by their absolute paths.
        tiny: also build the tiny model's bundles in float32 and int8 (needs torch).
        damaged: how many damaged manifests.
    Returns:
        the path of suite.json.
    """
    cases = json.loads(CASES.read_text())
    out.mkdir(parents=True)
    fake = write_fake_bundle(out / "bundles" / "fake")
    names = ["bundles/fake", *(_build_tiny(out) if tiny else []), *(str(path.resolve()) for path in bundles)]
    suite = {
        "made_with": {**versions(), "cpu": describe_machine().cpu},
        "defaults": {"class_labels": [], **PARAMETERS},
        "philox": cases["philox"],
        "uniforms": cases["uniforms"],
        "requests": [request for name in names for request in _requests(out, name, cases["requests"])],
        **{
            group: [{"bundle": "bundles/fake", **PARAMETERS, **case} for case in cases[group]]
            for group in ("request_errors", "cancellations")
        },
        "class_names": [{"bundle": "bundles/fake", **case} for case in cases["class_names"]],
        "threads_errors": [{"bundle": "bundles/fake", **case} for case in cases["threads_errors"]],
        "broken_bundles": [
            _break_bundle(out, number, fake, case) for number, case in enumerate(cases["broken_bundles"])
        ],
        "damaged_manifests": _damage_manifests(out, read_manifest(fake), damaged),
    }
    path = out / "suite.json"
    path.write_text(json.dumps(suite, indent=1) + "\n")
    return path


def arguments(request: dict[str, Any]) -> dict[str, Any]:
    """A request of the suite as keyword arguments of `Generator.generate`."""
    texts = {"nan": np.nan, "inf": np.inf}
    rows = request["uniforms"]
    return {
        "class_labels": request["class_labels"],
        "seed": int(request["seed"]),
        "first_image": int(request["first_image"]),
        "cfg_scale": texts.get(request["cfg_scale"], request["cfg_scale"]),
        "top_k": request["top_k"],
        "top_p": texts.get(request["top_p"], request["top_p"]),
        "forced_tokens": request["forced_tokens"],
        "uniforms": None if rows is None else [[float(texts.get(value, value)) for value in row] for row in rows],
        "batch_size": request["batch_size"],
    }


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


def _build_tiny(out: Path) -> Iterator[str]:
    from tiny_model import build_tiny

    for precision in ("fp32", "int8"):
        build_tiny(out / "bundles" / f"tiny-{precision}", precision)
        yield f"bundles/tiny-{precision}"


def _requests(out: Path, name: str, cases: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    bundle = Bundle.open(out / name)
    generator = Generator(bundle, SessionOptions(threads=1))
    for case in cases:
        request = _resolved({"bundle": name, **PARAMETERS, **case}, bundle.model)
        expected = results(generator, request, streaming=False)
        previews = results(generator, request, streaming=True)["previews_sha256"]
        yield {**request, "expected": {**expected, "previews_sha256": previews}}


def _resolved(request: dict[str, Any], model: ModelInfo) -> dict[str, Any]:
    """The request with what cases.json says of any model put into this model's numbers."""
    labels = [model.num_classes if label == "null" else label for label in request["class_labels"]]
    forced, numbers = request["forced_tokens"], request["uniforms"]
    shape = (len(labels), model.num_tokens)
    if forced is not None:
        stages = model.num_stages if forced["stages"] == "all" else forced["stages"]
        tokens = (7 * np.arange(shape[1]) + 3 * np.arange(shape[0])[:, None]) % model.vocab_size
        tokens[:, model.stage_slices[stages - 1].stop :] = -1
        forced = tokens.tolist()
    if numbers is not None:
        array = (
            np.full(shape, numbers["constant"], np.float32)
            if "constant" in numbers
            else uniforms(int(numbers["seed"]), range(shape[0]), shape[1])
        )
        numbers = array.tolist()
    return {**request, "class_labels": labels, "forced_tokens": forced, "uniforms": numbers}


def _break_bundle(out: Path, number: int, fake: Path, case: dict[str, Any]) -> dict[str, Any]:
    folder = out / "broken" / f"{number:02d}"
    shutil.copytree(fake, folder)
    for change in case["changes"]:
        _apply(folder, change)
    return {
        "name": case["name"],
        "bundle": str(folder.relative_to(out)),
        "step": case["step"],
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
    *parents, last = value[0] if kind == "set" else value
    owner: Any = manifest
    for key in parents:
        owner = owner[key]
    if kind == "set":
        owner[last] = value[1]
    elif kind == "delete":
        del owner[last]
    else:
        raise ValueError(f"unknown change {kind!r}")


def _damage_manifests(out: Path, manifest: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Write them and tell which are a manifest all the same, as damage to a comment would leave it."""
    (out / "damaged").mkdir()
    cases: list[dict[str, Any]] = []
    for text in damaged_manifests(manifest, count, DAMAGE_SEED):
        name = f"damaged/{len(cases):05d}.json"
        (out / name).write_bytes(text)
        try:
            parse_manifest(text)
        except BundleError as error:
            cases.append({"file": name, "error": "BundleError", "message": str(error)})
        else:
            cases.append({"file": name, "error": None})
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--bundle", type=Path, action="append", default=[], metavar="DIR", help="one more bundle")
    parser.add_argument("--no-tiny", action="store_true", help="leave out the bundles whose building needs torch")
    parser.add_argument("--damaged", type=int, default=DAMAGED, metavar="N", help="damaged manifests")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists already; name a new folder")
    print(make_suite(options.out, options.bundle, not options.no_tiny, options.damaged))


if __name__ == "__main__":
    main()
