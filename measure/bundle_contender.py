"""A bundle as a contender: the command that starts `_bundle_worker` on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from nextscale.measure.contender import Contender
from nextscale.measure.random_request import Subject
from nextscale.runtime._bundle import Bundle
from nextscale.runtime._session import SessionOptions

FORMS = {"generate": ("generate",), "streaming": ("stage", "decoder")}  # form -> the graphs it loads
_WORKER = "import sys; sys.path[:] = {path!r}; from nextscale.measure._bundle_worker import main; main({arguments!r})"


def bundle_contender(
    name: str,
    bundle: Bundle,
    form: str = "generate",
    options: SessionOptions | None = None,
    cpus: Sequence[int] | None = None,
    subject: Subject | None = None,
) -> Contender:
    """A bundle in one form, in a process that finds its modules where this one does.

    Args:
        name: in the results.
        bundle: what to generate with.
        form: "generate" or "streaming".
        options: of its sessions.
        cpus: the only ones to run on; None is all that this process may use.
        subject: what is drawn, where the bundle lets one choose.
    """
    arguments = {
        "bundle": str(bundle.folder),
        "form": form,
        "options": asdict(options or SessionOptions()),
        "cpus": None if cpus is None else list(cpus),
        "subject": asdict(subject or Subject()),
    }
    code = _WORKER.format(path=[os.path.abspath(entry) for entry in sys.path], arguments=arguments)
    return Contender(name, (sys.executable, "-c", code))
