"""A bundle on disk: its manifest, its files and the names of its classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from nextscale import __version__
from nextscale.runtime._checked_values import require_integer, whole_number
from nextscale.runtime._class_names import label_of_name, nearest_names
from nextscale.runtime._errors import BundleError, ClassLabelError, NextscaleError, RequestError
from nextscale.runtime._file_hash import file_sha256
from nextscale.runtime._manifest import FUSED, STOCK, GraphInfo, Manifest, ModelInfo
from nextscale.runtime._manifest_reader import parse_manifest
from nextscale.runtime._regular_file import require_regular
from nextscale.runtime._wording import shown_text, shown_value

if TYPE_CHECKING:
    from nextscale.runtime._tokenizer import Tokenizer

MANIFEST_NAME = "manifest.json"
CARD_NAME = "card.md"  # for people: whether a bundle runs does not depend on it
WORDS_NAME = "words.txt"  # those that the model saw; no graph reads it
NULL_CLASS = "null"
_MANIFEST_LIMIT = 32 * 2**20  # bytes; a real one is below 1 MB
_MOST_DIGITS = 100  # of a class's id


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest was read and whose files all have the size the manifest gives, but for its card.

    A file that is a link out of the folder, as in a download cache, also has the sha256 that the manifest gives.

    Attributes:
        path: the folder, as it was named.
        manifest: what manifest.json says.
        folder: the same folder, whatever the process's current one is later.
    """

    path: Path
    manifest: Manifest
    folder: Path = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(os.path.abspath(self.path)))

    @classmethod
    def open(cls, path: str | os.PathLike[str], verify_hashes: bool = False) -> "Bundle":
        """Read a bundle's manifest and check its files.

        Args:
            path: the bundle's folder.
            verify_hashes: also read every file and compare its sha256.
        Raises:
            BundleError: there is no bundle, or it is damaged, of a newer schema, or has a link to a file that the
                manifest does not vouch for.
        """
        try:
            folder = Path(path)
        except TypeError:
            raise BundleError(f"bundle {shown_value(path)}: expected a folder's path") from None
        if path == "":
            raise BundleError("the bundle's path is empty: expected a folder made by `nextscale build`")
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
        return type(self).open, (str(self.folder),)

    @property
    def model(self) -> ModelInfo:
        return self.manifest.model

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """What makes token ids of prompts; read when it is first asked for.

        Raises:
            RequestError: the bundle has none, or one of a kind that this release does not know.
            BundleError: its file is damaged.
            NextscaleError: a package that it needs is not installed.
        """
        from nextscale.runtime._tokenizer import ByteTokenizer, SentencePieceTokenizer

        info = self.manifest.tokenizer
        if info is None:
            raise RequestError("this bundle has no tokenizer; give features of the texts in inputs")
        if info.kind == "bytes":
            return ByteTokenizer(info.max_tokens)
        if info.file is None:
            raise RequestError(
                f'this bundle has a tokenizer of kind "{info.kind}", which nextscale {__version__} does not know; give '
                "features of the texts in inputs"
            )
        return SentencePieceTokenizer(self.folder / info.file, info.max_tokens)

    def graph(self, role: str) -> GraphInfo:
        """The graph "stage", "decoder" or, where the bundle has them, "generate", "encoder" and "text_encoder".

        Raises:
            BundleError: the bundle has no such graph.
        """
        if not isinstance(role, str) or role not in self.manifest.graphs:
            shown = f'"{shown_text(role)}"' if isinstance(role, str) else shown_value(role)
            raise BundleError(f"{self.path}: the bundle has no graph {shown}; it has {', '.join(self.manifest.graphs)}")
        return self.manifest.graphs[role]

    def require_encoder(self) -> None:
        """Raise BundleError unless the bundle has an encoder."""
        if "encoder" not in self.manifest.graphs:
            raise BundleError(f"{self.path}: the bundle has no encoder; build it again, without --no-encoder")

    def require_classes(self, instead: str) -> None:
        """Raise BundleError unless the bundle makes pictures of classes; tells what else to do."""
        if self.manifest.input_of_kind("label") is None:
            raise BundleError(f"{self.path}: makes pictures of text, expected a bundle of classes: {instead}")

    def graph_path(self, role: str, variant: str = STOCK) -> Path:
        """The ONNX file of a graph's variant, "stock" or, where the graph has it, "fused"; see `graph`."""
        graph = self.graph(role)
        return self.folder / (graph.fused.file if variant == FUSED and graph.fused is not None else graph.file)

    def paths(self) -> list[Path]:
        """The manifest and the files that it lists."""
        return [self.folder / name for name in (MANIFEST_NAME, *self.manifest.files)]

    def linked_data(self) -> dict[str, Path]:
        """The files beside the graphs that are links out of the folder, by name."""
        others = {file for graph in self.manifest.graphs.values() for file in graph.files}
        others |= {CARD_NAME, WORDS_NAME}
        if self.manifest.tokenizer is not None and self.manifest.tokenizer.file is not None:
            others.add(self.manifest.tokenizer.file)
        names = [name for name in self.manifest.files if name not in others]
        return {name: self.folder / name for name in names if self._is_link_out(name)}

    def verify_hashes(self) -> None:
        """Read every file and compare its sha256.

        Raises:
            BundleError: a file's content is not what the manifest says.
        """
        for name in self.changed_files():
            if not os.path.isfile(self.folder / name):
                raise self._missing(name)
            raise BundleError(
                f"{self.path / name}: the content was changed (sha256 differs from the manifest's); "
                "copy or build the bundle again"
            )

    def changed_files(self) -> Iterator[str]:
        """Names of the files that are missing or whose sha256 differs from the manifest's, as each is read."""
        for name in self.manifest.files:
            if not os.path.isfile(self.folder / name) or self._is_changed(name):
                yield name

    def class_label(self, name: str | SupportsIndex) -> int:
        """The id of a class.

        Args:
            name: an id (a number, or its digits), or a class name in any case. Where names list synonyms separated by
                commas, each synonym is a name. "null", where no class is named so, is the null class.
        Returns:
            an id in [0, num_classes]; num_classes is the null class.
        Raises:
            ClassLabelError: an id out of range, an unknown name, or a name that several classes share.
        """
        if isinstance(name, str) and not name.strip().isdecimal():
            return self._label_of_name(name)
        if isinstance(name, str) and len(name) > _MOST_DIGITS:  # Python converts no more than some thousand digits
            raise ClassLabelError(f"class {name:.20}… is out of range: expected {self._label_range()}")
        try:
            label = int(name) if isinstance(name, str) else whole_number(name)
        except TypeError:
            raise ClassLabelError(f"class {shown_value(name)}: expected an integer or a class name") from None
        return self._require_label(label)

    def class_name(self, label: SupportsIndex) -> str:
        """A class's name, or its id as text where it has none, as the null class.

        Raises:
            ClassLabelError: not the id of a class.
        """
        found = self._require_label(require_integer("class", label, ClassLabelError))
        names = self.manifest.class_names
        return names[found] if names is not None and found < len(names) else str(found)

    def _require_label(self, label: int) -> int:
        if not 0 <= label <= self.model.num_classes:
            raise ClassLabelError(f"class {shown_value(label)} is out of range: expected {self._label_range()}")
        return label

    def _label_range(self) -> str:
        return f"0 to {self.model.num_classes - 1} ({self.model.num_classes} is the null class)"

    def _label_of_name(self, name: str) -> int:
        names = self.manifest.class_names
        label = None if names is None else label_of_name(name, names)
        if label is not None:
            return label
        if name.strip().casefold() == NULL_CLASS:
            return self.model.num_classes
        if names is None:
            last = self.model.num_classes - 1
            raise ClassLabelError(
                f'class "{shown_text(name)}": this bundle has no class names; give an id from 0 to {last}'
            )
        raise ClassLabelError(f'no class is named "{shown_text(name)}"; {nearest_names(name, names)}')

    def _check_file(self, name: str) -> None:
        """Refuse a file that is not there or not as the manifest says; of the card, only what a link brings in."""
        path, info = self.path / name, self.manifest.files[name]
        linked = self._is_link_out(name)
        if name == CARD_NAME and not (linked and os.path.isfile(path)):
            return
        if not os.path.isfile(path):
            raise self._missing(name)
        size = os.path.getsize(path)
        if size != info.size:
            raise BundleError(
                f"{path}: {size} bytes, but the manifest says {info.size}: the file was truncated or changed; "
                "copy or build the bundle again"
            )
        if linked and self._is_changed(name):
            raise BundleError(
                f"{path}: a link out of the bundle's folder, to another content than the manifest's (sha256 differs); "
                "download or copy the bundle again"
            )

    def _is_link_out(self, name: str) -> bool:
        return os.path.dirname(os.path.realpath(self.folder / name)) != os.path.realpath(self.folder)

    def _is_changed(self, name: str) -> bool:
        try:
            return file_sha256(self.folder / name) != self.manifest.files[name].sha256
        except NextscaleError as error:
            raise BundleError(str(error)) from None

    def _missing(self, name: str) -> BundleError:
        return BundleError(f"{self.path / name}: the file is missing; copy or build the bundle again")


def _read_manifest(path: Path) -> bytes:
    require_regular(path, BundleError)
    try:
        with open(path, "rb") as file:
            content = file.read(_MANIFEST_LIMIT + 1)
    except FileNotFoundError:
        named = path.absolute() if path.parent == Path() else path
        raise BundleError(f"{named}: the file is missing; expected a bundle made by `nextscale build`") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > _MANIFEST_LIMIT:
        raise BundleError(f"{path}: larger than {_MANIFEST_LIMIT} bytes, which no manifest is")
    return content
