"""The open sessions of a bundle, and what becomes of them when the process forks.

A fork copies memory but no threads: a session of the parent has no thread pool in the child, would never end a run
there, and its destructor would wait for ever for threads that are not. So a child leaves its parent's sessions as they
are, undestroyed, and opens its own at first use.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import weakref

import onnxruntime

from nextscale.runtime._bundle import Bundle
from nextscale.runtime._machine import saturation_warning
from nextscale.runtime._manifest import STOCK, Manifest
from nextscale.runtime._operators import choose_variant
from nextscale.runtime._session import SessionOptions, open_session

# Held while a session is opened, and during a fork: so no child begins with ONNX Runtime in the middle of that.
_opening = threading.RLock()
_pools: weakref.WeakSet[SessionPool] = weakref.WeakSet()
_warned: set[str] = set()


class SessionPool:
    """The sessions of one bundle in this process, each opened at its first use; threads may share a pool.

    Attributes:
        choice: which variant of the graphs they run.
    """

    def __init__(self, bundle: Bundle, options: SessionOptions) -> None:
        self._bundle, self._options = bundle, options
        self.choice = choose_variant(bundle, options.ops, options.ops_library)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        with _opening:
            _pools.add(self)

    def session(self, graph: str) -> onnxruntime.InferenceSession:
        """The session of a graph.

        Raises:
            BundleError: the bundle has no such graph, onnxruntime cannot load it, or its inputs and outputs are not the
                manifest's.
        """
        session = self._sessions.get(graph)
        if session is not None:
            return session  # without the lock: while one graph is opened, others go on
        with _opening:
            if graph not in self._sessions:
                if not self._sessions and self.choice.variant == STOCK:
                    _warn_of_saturation(self._bundle.manifest)
                path, info = self._bundle.graph_path(graph, self.choice.variant), self._bundle.graph(graph)
                library = None if info.fused is None else self.choice.library
                self._sessions[graph] = open_session(path, info, self._options, self._bundle.linked_data(), library)
            return self._sessions[graph]

    def close(self, graph: str) -> None:
        """Forget a graph's session, which is destroyed when the calls end that run it; the next use opens another."""
        with _opening:
            self._sessions.pop(graph, None)

    def abandon(self) -> None:
        """Forget all sessions without destroying them, not even when the interpreter ends."""
        for session in self._sessions.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self._sessions = {}


def _after_fork_in_child() -> None:
    for pool in _pools:
        pool.abandon()
    _opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_after_fork_in_child)


def _warn_of_saturation(manifest: Manifest) -> None:
    """Log a warning, once a process and kind of bundle, where the bundle's integer products are not exact.

    By the bundle's name, not its folder: a build runs it in a folder that is renamed afterwards.
    """
    warning = saturation_warning(manifest.recipe)
    bundle = f"bundle {manifest.name} (recipe {manifest.recipe.get('name')})"
    if warning is not None and bundle not in _warned:
        _warned.add(bundle)
        logging.getLogger(__name__).warning("%s: %s", bundle, warning)
