"""ONNX Runtime sessions with the options that suit a bundle."""

import mmap
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from nextscale.runtime._checked_values import is_truth_value, require_integer
from nextscale.runtime._cpus import default_threads, logical_cpus
from nextscale.runtime._errors import BundleError, Cancelled, NextscaleError
from nextscale.runtime._interruptible import CancelFlag, call_interruptibly
from nextscale.runtime._manifest import GraphInfo, TensorInfo
from nextscale.runtime._operators import Ops, require_ops
from nextscale.runtime._wording import shown_number, shown_text, shown_value

MINIMUM_ONNXRUNTIME = (1, 23)
CRASHING_ONNXRUNTIME = "1.29.0"  # in containers without a shell, when telemetry starts
# What ONNX Runtime says, wherever memory or threads are short: of the system's allocator, of its arena, of its pool.
_NO_MEMORY = ("std::bad_alloc", "Failed to allocate memory")
_NO_THREAD = "pthread_create failed"  # of its pool
_SWITCHES = ("spinning", "memory_arena", "return_memory", "memory_pattern", "prepacking", "keep_text_encoder")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}


@dataclass(frozen=True)
class SessionOptions:
    """How a session uses the machine.

    Attributes:
        threads: threads of one operator; 0 takes one for each physical core that the process may run on, and no more
            than its control groups' quota of CPU time, rounded up.
        spinning: idle threads spin for a moment before they sleep, which is faster on an idle machine and slower on a
            busy one. More threads than the CPUs that the process may use never spin: they would wait for each other.
        memory_arena: keep freed memory for the next operator; without it a picture takes about a quarter longer.
        return_memory: give memory back to the operating system after each call, for a process that lives long: it runs
            without the arena and, with glibc, also returns what the C library would keep.
        memory_pattern: plan one block of memory for each set of shapes; this costs memory and saves no time here.
        ops: "fused" runs the bundle's graphs of nextscale-ops' operators, "stock" those of ONNX Runtime's own; "auto"
            takes the fused ones where the bundle has them and the library is there and fits. A seed's tokens may
            differ between the two.
        ops_library: the path of the library; empty: that of the installed package nextscale-ops. It is never taken from
            a bundle.
        prepacking: keep a second copy of the weights in the order that the kernels want, which is faster; without it
            float weights stay in their file, and are read from there. Rounding may differ between the two.
        keep_text_encoder: keep the text encoder loaded for the next prompts; without it, it is closed once the texts of
            a request are encoded, and its memory is free while the pictures are made. Loading it again takes as long
            as the first time.
        profile: when a session ends, write ONNX Runtime's profile of it to a file whose path begins with this text; no
            profile if it is empty.
    """

    threads: int = 0
    spinning: bool = True
    memory_arena: bool = True
    return_memory: bool = False
    memory_pattern: bool = False
    ops: Ops = "auto"
    ops_library: str = ""
    prepacking: bool = True
    keep_text_encoder: bool = True
    profile: str = ""

    def __post_init__(self) -> None:
        threads = require_integer("threads", self.threads, NextscaleError)
        if not 0 <= threads <= 1024:
            raise NextscaleError(
                f"threads {shown_number(threads)} is out of range: expected 1 to 1024, or 0 for all cores"
            )
        for name in _SWITCHES:
            if not is_truth_value(getattr(self, name)):
                raise NextscaleError(f"{name} {shown_value(getattr(self, name))}: expected True or False")
        require_ops(self.ops, self.ops_library)
        if not isinstance(self.profile, str) or "\0" in self.profile:
            raise NextscaleError(f"profile {shown_value(self.profile)}: expected the beginning of a file's path")
        folder = os.path.dirname(self.profile) or "."
        if self.profile and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
            raise NextscaleError(f"profile {shown_value(self.profile)}: no folder that can be written: {folder}")
        # They are used later, when the process or a copy of these options may be in another folder.
        for name in ("ops_library", "profile"):
            if getattr(self, name):
                object.__setattr__(self, name, os.path.abspath(getattr(self, name)))


def require_onnxruntime(version: str | None = None) -> None:
    """Refuse a release of ONNX Runtime on which bundles do not run.

    Raises:
        NextscaleError: the release is older than MINIMUM_ONNXRUNTIME, or it is CRASHING_ONNXRUNTIME; names both.
    """
    version = onnxruntime.__version__ if version is None else version
    minimum = ".".join(map(str, MINIMUM_ONNXRUNTIME))
    install = f'pip install "onnxruntime>={minimum},!={CRASHING_ONNXRUNTIME}"'
    if release_numbers(version) < MINIMUM_ONNXRUNTIME:
        raise NextscaleError(f"onnxruntime {version} is too old: bundles need {minimum} or later: {install}")
    if version == CRASHING_ONNXRUNTIME:
        raise NextscaleError(f"onnxruntime {version} crashes in containers without a shell: {install}")


def release_numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a release, to compare."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def session_settings(options: SessionOptions) -> onnxruntime.SessionOptions:
    """The settings that every session of a bundle runs with."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(options.threads) or default_threads()
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = bool(options.memory_arena and not options.return_memory)
    settings.enable_mem_pattern = bool(options.memory_pattern)
    settings.log_severity_level = 4  # none but fatal: what is wrong comes back as an exception
    settings.add_session_config_entry("session.disable_prepacking", str(int(not options.prepacking)))
    spinning = options.spinning and settings.intra_op_num_threads <= logical_cpus()
    settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    # Threads of a run that has ended would spin for some 30 ms more, and take cores from the next session's.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if options.profile:
        settings.enable_profiling, settings.profile_file_prefix = True, options.profile
    return settings


def open_session(
    path: Path,
    graph: GraphInfo,
    options: SessionOptions,
    linked: Mapping[str, Path] | None = None,
    library: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load one graph of a bundle and check that it is the one the manifest describes; Ctrl-C ends the loading.

    Args:
        path: of the graph's ONNX file.
        graph: what the manifest says of it.
        options: threads and memory.
        linked: files of weights that are links out of the bundle's folder; see `new_session`.
        library: of operators that the graph needs.
    Raises:
        NextscaleError: onnxruntime is too old, or memory is short.
        BundleError: onnxruntime cannot load the file, or the file's inputs and outputs are others.
    """
    require_onnxruntime()
    if not _is_text(path):
        raise BundleError(f"{shown_text(str(path))}: onnxruntime opens no path that is not UTF-8: rename the folder")
    settings = session_settings(options)
    if library is not None:
        settings.register_custom_ops_library(str(library))

    def load() -> onnxruntime.InferenceSession:
        return new_session(path, settings, linked)

    try:
        session = call_interruptibly(load, lambda: settings.set_load_cancellation_flag(True))
    except Exception as error:  # its exceptions have no common base below Exception
        kind = NextscaleError if is_shortage(error) else BundleError
        raise kind(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {first_line(error)}") from None
    differences = contract_differences(session, graph)
    if differences:
        raise BundleError(f"{path}: not the graph that the manifest describes: {differences[0]}")
    return session


def _is_text(path: Path) -> bool:
    """Whether a path is what text can be: other bytes of a name are lone surrogates in Python."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def new_session(
    model: Path | bytes, settings: onnxruntime.SessionOptions, linked: Mapping[str, Path] | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU; what fails is raised, and nothing is printed.

    Args:
        model: the file or its content.
        settings: of the session.
        linked: files of weights behind links out of the bundle's folder, by the name that the graph has for them; most
            releases of ONNX Runtime do not follow such links.
    """
    content = model if isinstance(model, bytes) else str(model)
    with ExitStack() as stack:
        contents = {name: _mapped(path, stack) for name, path in (linked or {}).items() if path.stat().st_size}
        if contents and hasattr(settings, "add_external_initializers_from_files_in_memory"):  # from 1.24 on
            names, buffers = list(contents), list(contents.values())
            settings.add_external_initializers_from_files_in_memory(names, buffers, [len(item) for item in buffers])
        # The fallback would print to stdout, and try the same provider again.
        return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"], enable_fallback=0)


def _mapped(path: Path, stack: ExitStack) -> mmap.mmap:
    with open(path, "rb") as file:
        return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def run_session(
    session: onnxruntime.InferenceSession,
    names: Sequence[str],
    feeds: Mapping[str, onnxruntime.OrtValue],
    graph: object,
    cancel: CancelFlag | None = None,
) -> dict[str, onnxruntime.OrtValue]:
    """Run a session once; Ctrl-C in the main thread ends the run.

    Args:
        session: of the graph.
        names: of the outputs to bring back.
        feeds: inputs by name.
        graph: how errors name the graph.
        cancel: ends the run when it is set.
    Raises:
        Cancelled: cancel is set.
        NextscaleError: onnxruntime failed.
    """
    options = onnxruntime.RunOptions()

    def run() -> list[onnxruntime.OrtValue]:
        return list(session.run_with_ort_values(list(names), dict(feeds), options))

    def stop() -> None:
        options.terminate = True

    try:
        return dict(zip(names, call_interruptibly(run, stop, cancel), strict=True))
    except Cancelled:
        raise
    except Exception as error:  # its exceptions have no common base below Exception
        raise NextscaleError(f"{graph}: onnxruntime failed: {first_line(error)}") from error


def ort_value(array: NDArray[Any]) -> onnxruntime.OrtValue:
    """A tensor that shares the array's memory and keeps it alive."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def contract_differences(session: onnxruntime.InferenceSession, graph: GraphInfo) -> list[str]:
    """One line for each input or output of a session that is not as the manifest says."""
    lines = []
    for kind, declared, actual in (
        ("input", graph.inputs, session.get_inputs()),
        ("output", graph.outputs, session.get_outputs()),
    ):
        expected = {tensor.name: tensor for tensor in declared}
        found = {node.name: TensorInfo(node.name, _DTYPES.get(node.type, node.type), _shape(node)) for node in actual}
        for name in sorted(expected.keys() | found.keys()):
            if name not in found or name not in expected:
                lines.append(f'{kind} "{name}" is only in the {"manifest" if name in expected else "file"}')
            elif not _agree(expected[name], found[name]):
                lines.append(
                    f'{kind} "{name}": the manifest says {_line(expected[name])}, the file {_line(found[name])}'
                )
    return lines


def is_shortage(error: BaseException) -> bool:
    """Whether ONNX Runtime failed for want of memory or threads, which is no fault of the bundle."""
    return _shortage(str(error)) is not None


def _shortage(text: str) -> str | None:
    if any(words in text for words in _NO_MEMORY):
        return "out of memory: fewer images at a time, fewer threads or no memory arena need less"
    if _NO_THREAD in text:
        return "the system starts no more threads: ask for fewer"
    return None


def first_line(error: BaseException) -> str:
    """An exception's message on one line, without ONNX Runtime's prefix of code and name."""
    text = " ".join(str(error).split()) or type(error).__name__
    shortage = _shortage(text)
    if shortage is not None:
        return shortage
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:300]


def _shape(node: onnxruntime.NodeArg) -> tuple[int | str | None, ...]:
    return tuple(node.shape)


def _agree(expected: TensorInfo, found: TensorInfo) -> bool:
    """Types are equal, and ranks and sizes wherever both sides tell (an unknown rank reads as no dimensions)."""
    if expected.dtype != found.dtype or not found.shape:
        return expected.dtype == found.dtype
    return len(expected.shape) == len(found.shape) and all(
        a == b for a, b in zip(expected.shape, found.shape, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def _line(tensor: TensorInfo) -> str:
    return f"{tensor.dtype} [{', '.join('?' if size is None else str(size) for size in tensor.shape)}]"
