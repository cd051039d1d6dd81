"""A bundle on disk: its manifest, its files and the names of its classes."""

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex

from nextscale.runtime._errors import BundleError, ClassLabelError, NextscaleError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._manifest import GraphInfo, Manifest, ModelInfo
from nextscale.runtime._manifest_reader import parse_manifest

MANIFEST_NAME = "manifest.json"
_MANIFEST_LIMIT = 32 * 2**20  # bytes; a real one is below 1 MB
_SHOWN = 8


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest was read and whose files all have the size the manifest gives.

    Attributes:
        path: the folder.
        manifest: what manifest.json says.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify_hashes: bool = False) -> "Bundle":
        """Read a bundle's manifest and check its files.

        Args:
            path: the bundle's folder.
            verify_hashes: also read every file and compare its sha256.
        Raises:
            BundleError: there is no bundle, or it is damaged, of a newer schema, or has a file outside its folder.
        """
        folder = Path(path)
        if not os.path.isdir(folder):
            raise BundleError(f"{folder}: no such folder; expected a bundle made by `nextscale build`")
        bundle = cls(folder, parse_manifest(_read_manifest(folder / MANIFEST_NAME), str(folder / MANIFEST_NAME)))
        for name in bundle.manifest.files:
            bundle._check_file(name)
        if verify_hashes:
            bundle.verify_hashes()
        return bundle

    def __reduce__(self) -> tuple[Any, ...]:
        # By its place: what reads it may run in another folder, and checks the files that it finds.
        return type(self).open, (os.path.abspath(self.path),)

    @property
    def model(self) -> ModelInfo:
        return self.manifest.model

    def graph(self, role: str) -> GraphInfo:
        """The graph "stage", "decoder" or, where the bundle has it, "generate".

        Raises:
            BundleError: the bundle has no such graph.
        """
        if role not in self.manifest.graphs:
            raise BundleError(f'{self.path}: the bundle has no graph "{role}": load stage and decoder')
        return self.manifest.graphs[role]

    def graph_path(self, role: str) -> Path:
        """The ONNX file of a graph; see `graph`."""
        return self.path / self.graph(role).file

    def verify_hashes(self) -> None:
        """Read every file and compare its sha256.

        Raises:
            BundleError: a file's content is not what the manifest says.
        """
        for name in self.changed_files():
            raise BundleError(
                f"{self.path / name}: the content was changed (sha256 differs from the manifest's); "
                "copy or build the bundle again"
            )

    def changed_files(self) -> Iterator[str]:
        """Names of the files whose sha256 differs from the manifest's, as each is read."""
        for name, info in self.manifest.files.items():
            try:
                found = file_sha256(self.path / name)
            except NextscaleError as error:
                raise BundleError(str(error)) from None
            if found != info.sha256:
                yield name

    def class_label(self, name: str | SupportsIndex) -> int:
        """The id of a class.

        Args:
            name: an id (a number, or its digits), or a class name in any case. Where names list synonyms separated by
                commas, each synonym is a name.
        Returns:
            an id in [0, num_classes]; num_classes is the null class.
        Raises:
            ClassLabelError: an id out of range, an unknown name, or a name that several classes share.
        """
        if isinstance(name, str) and not name.strip().isdecimal():
            return self._label_of_name(name)
        try:
            label = int(name) if isinstance(name, str) else index(name)
        except TypeError:
            raise ClassLabelError(f"class {name!r}: expected an integer or a class name") from None
        except ValueError:  # Python converts no more than some thousand digits
            raise ClassLabelError(f"class {name!s:.20}… is out of range: expected {self._label_range()}") from None
        if not 0 <= label <= self.model.num_classes:
            raise ClassLabelError(f"class {label} is out of range: expected {self._label_range()}")
        return label

    def class_name(self, label: int) -> str:
        """A class's name, or its id as text where it has none."""
        names = self.manifest.class_names
        return names[label] if names is not None and label < len(names) else str(label)

    def _label_range(self) -> str:
        return f"0 to {self.model.num_classes - 1} ({self.model.num_classes} is the null class)"

    def _label_of_name(self, name: str) -> int:
        names = self.manifest.class_names
        if names is None:
            raise ClassLabelError(
                f'class "{name}": this bundle has no class names; give an id from 0 to {self.model.num_classes - 1}'
            )
        wanted = _folded(name)
        whole = [label for label, known in enumerate(names) if _folded(known) == wanted]
        found = whole or [label for label, known in enumerate(names) if wanted in map(_folded, known.split(","))]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{label} ({names[label]})" for label in found[:_SHOWN])
            raise ClassLabelError(f'class "{name}" is the name of {len(found)} classes: give an id of {listed}')
        raise ClassLabelError(f'no class is named "{name}"; {_suggestion(wanted, names)}')

    def _check_file(self, name: str) -> None:
        path, info = self.path / name, self.manifest.files[name]
        if Path(os.path.realpath(path)).parent != Path(os.path.realpath(self.path)):
            raise BundleError(
                f"{path}: the file is a link out of the bundle's folder, as in a download cache; "
                "make a real copy of the folder (cp -rL) and use that"
            )
        if not os.path.isfile(path):
            raise BundleError(f"{path}: the file is missing; copy or build the bundle again")
        size = os.path.getsize(path)
        if size != info.size:
            raise BundleError(
                f"{path}: {size} bytes, but the manifest says {info.size}: the file was truncated or changed; "
                "copy or build the bundle again"
            )


def _read_manifest(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MANIFEST_LIMIT + 1)
    except FileNotFoundError:
        raise BundleError(f"{path}: the file is missing; expected a bundle made by `nextscale build`") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _MANIFEST_LIMIT:
        raise BundleError(f"{path}: larger than {_MANIFEST_LIMIT} bytes, which no manifest is")
    return content


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _suggestion(wanted: str, names: tuple[str, ...]) -> str:
    """The nearest names: those that contain the wanted text, then those spelled most like it."""
    known = {_folded(part): label for label, name in reversed(list(enumerate(names))) for part in name.split(",")}
    containing = [name for name in known if wanted and wanted in name]
    nearest = list(dict.fromkeys(containing + difflib.get_close_matches(wanted, known, n=4, cutoff=0.5)))[:_SHOWN]
    if not nearest:
        return "`nextscale inspect DIR --classes` lists the names"
    return f"nearest: {', '.join(f'{name} ({known[name]})' for name in nearest)}"
