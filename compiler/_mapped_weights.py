"""A torch model's weights in a file that is mapped into memory: read when they are needed, not held."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from nextscale.compiler.options import Progress
from nextscale.runtime._freed_memory import return_freed_memory

ALIGNMENT = 64  # bytes, as torch's own memory has


class MappedWeights:
    """The parameters of some modules, moved to a file without a name and mapped from it.

    A build reads them a few times, and in between runs graphs that have weights of their own. The modules keep the
    mapping, and the file goes with them: each build of the same modules writes another, and the one before goes.

    Args:
        modules: changed in place; their parameters have the same values as before.
        folder: where the file lies; it takes as many bytes as they have, of whatever type they are.
    """

    def __init__(self, modules: Iterable[nn.Module], folder: Path) -> None:
        parameters = {id(tensor): tensor for module in modules for tensor in module.parameters() if tensor.numel()}
        with tempfile.TemporaryFile(dir=folder) as file:
            places = []
            for tensor in parameters.values():
                file.write(bytes(-file.tell() % ALIGNMENT))
                places.append(file.tell())
                file.write(_content(tensor))
            file.flush()
            # Writable for torch alone, which takes no other: a page that is changed would become a copy in memory.
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for tensor, place in zip(parameters.values(), places, strict=True):
            found = torch.frombuffer(self._mapping, dtype=tensor.dtype, count=tensor.numel(), offset=place)
            tensor.data = found.view(tensor.shape)

    def drop(self) -> None:
        """Give back the pages that were read; parameters that were changed since are as they were before."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def tidying(self, progress: Progress) -> Progress:
        """A progress that tells the same and, where a step begins, gives back what the one before has read or freed."""

        def told(step: str, done: int = 0, total: int = 0) -> None:
            if not done:
                self.drop()
                return_freed_memory()
            progress(step, done, total)

        return told


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
