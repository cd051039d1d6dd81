"""The library of fused operators, nextscale-ops: where it is, whether it fits a bundle, and which graphs then run."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from nextscale.runtime._errors import NextscaleError
from nextscale.runtime._manifest import FUSED, OPERATORS, STOCK
from nextscale.runtime._text import printable
from nextscale.runtime._wording import shown_text, shown_value

if TYPE_CHECKING:
    from nextscale.runtime._bundle import Bundle

Ops = Literal["auto", "stock", "fused"]
Variant = Literal["stock", "fused"]
OPS = get_args(Ops)
PACKAGE = "nextscale_ops"
# Plain C++, for processors without kernels of their own: the stock operators are faster.
SLOW_ISA = "portable"
_NO_ISA = "NEXTSCALE_OPS_ISA names no instruction set that this processor has"
_INSTALL = "install nextscale-ops (docs/fused.md says how), or give its library as ops_library"


@dataclass(frozen=True)
class OperatorLibrary:
    """A library of operators that this process has loaded.

    Attributes:
        path: of the file.
        version: of its operators.
        isa: the instruction set that its kernels use here; empty where the environment asks for one that is not there.
    """

    path: Path
    version: int
    isa: str


@dataclass(frozen=True)
class Choice:
    """Which variant of a bundle's graphs runs.

    Attributes:
        variant: of all graphs that have it.
        library: to register where it is "fused".
        reason: why it is this one, for people.
    """

    variant: Variant
    library: Path | None
    reason: str


def choose_variant(bundle: Bundle, ops: Ops, library: str) -> Choice:
    """The variant that a session of the bundle takes.

    Args:
        bundle: whose graphs are to run.
        ops: "auto" takes the fused graphs where the bundle has them and a library for them is there.
        library: the path of the library; empty: the one of the installed package.
    Raises:
        NextscaleError: `ops` is "fused" and something is missing, or `library` is no library of operators.
    """
    if ops == "stock":
        return Choice(STOCK, None, "stock operators were asked for")
    found = load_library(Path(library)) if library else installed_library()
    lack = _lack(bundle, found)
    if lack is None and found is not None:
        if ops == "auto" and found.isa == SLOW_ISA:
            return Choice(STOCK, None, "stock operators are faster on this processor")
        return Choice(FUSED, found.path, f"nextscale-ops on {found.isa}")
    if ops == "fused":
        raise NextscaleError(f"{bundle.path}: fused operators cannot run: {lack}")
    return Choice(STOCK, None, str(lack))


def _lack(bundle: Bundle, library: OperatorLibrary | None) -> str | None:
    """What keeps the bundle's fused graphs from running, if anything does."""
    fused = [graph.fused for graph in bundle.manifest.graphs.values() if graph.fused is not None]
    if not fused:
        return "the bundle has no fused graphs; build it again without --no-fused"
    if library is None:
        return f"nextscale-ops is not installed; {_INSTALL}"
    if not library.isa:
        return _NO_ISA
    for graph in fused:
        others = {domain: version for domain, version in graph.operators.items() if domain != OPERATORS}
        wanted = graph.operators.get(OPERATORS, library.version)
        if others:
            return f"they need operators of {shown_text(next(iter(others)))}, which nextscale-ops does not have"
        if wanted != library.version:
            return (
                f"they need version {wanted} of nextscale-ops' operators, and {library.path} has version "
                f"{library.version}: install the nextscale-ops that fits, or build the bundle again"
            )
    return None


def wanted_library(ops: Ops, library: str) -> Path | None:
    """The library for a graph outside bundles; None unless ops is "fused".

    Raises:
        NextscaleError: it is missing, or has no kernels for this processor.
    """
    if ops != "fused":
        return None
    found = load_library(Path(library)) if library else installed_library()
    if found is None:
        raise NextscaleError(f"fused operators cannot run: nextscale-ops is not installed; {_INSTALL}")
    if not found.isa:
        raise NextscaleError(f"fused operators cannot run: {_NO_ISA}")
    return found.path


def installed_library() -> OperatorLibrary | None:
    """The library of the installed package, if there is one."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return None
    path: Path = importlib.import_module(PACKAGE).library_path()
    return load_library(path)


_loading = threading.Lock()


def load_library(path: Path) -> OperatorLibrary:
    """Load a library of operators and ask it what it is.

    Raises:
        NextscaleError: the file is no such library.
    """
    with _loading:
        loaded = _loaded(path)
    isa = loaded.nextscale_ops_isa()
    return OperatorLibrary(path, int(loaded.nextscale_ops_version()), "" if isa is None else isa.decode())


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.nextscale_ops_isa.restype = ctypes.c_char_p
        loaded.nextscale_ops_version.restype = ctypes.c_int
    except OSError as error:
        reason = shown_text(" ".join(str(error).split()))
        raise NextscaleError(f"{printable(str(path))}: cannot be loaded as a library of operators: {reason}") from None
    except AttributeError:
        raise NextscaleError(
            f"{printable(str(path))}: a library without nextscale's operators; expected that of nextscale-ops"
        ) from None
    return loaded


def require_ops(ops: object, library: object) -> None:
    """Refuse values that are no choice of operators.

    Raises:
        NextscaleError: names the value.
    """
    if not isinstance(ops, str) or ops not in OPS:
        raise NextscaleError(f"ops {shown_value(ops)}: expected {', '.join(OPS)}")
    if not isinstance(library, str):
        raise NextscaleError(f"ops_library {shown_value(library)}: expected a file's path as text")
