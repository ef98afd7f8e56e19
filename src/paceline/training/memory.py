"""A worker's own memory: how much it grew, and a limit that is met by an exception, not by the kernel's killer."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil
import torch

SAMPLE_EVERY_S = 0.005
SLACK_BYTES = 128 * 2**20  # address space of threads' stacks and arenas, most of which is never touched


class MemoryLimit:
    """Inside the block, this process may grow by `limit` bytes. `most`: that it grew by, file pages aside.

    Two guards. Allocations that would go far beyond raise in whoever asks for them (RLIMIT_DATA, which Linux alone
    enforces; `mapped`: bytes of private file mappings to come, which it counts too). And a thread watches what is in
    use, and calls `on_excess`, which must end the process.
    """

    def __init__(self, limit: int, mapped: int, on_excess: Callable[[int], None]) -> None:
        self.limit = limit
        self.most = 0
        self._mapped, self._on_excess = mapped, on_excess
        self._before = own_bytes()
        self._over = threading.Event()

    def __enter__(self) -> MemoryLimit:
        self._former = resource.getrlimit(resource.RLIMIT_DATA)
        held, (_, hard) = _data_bytes(), self._former
        ceiling = (held or 0) + self._mapped + self.limit + SLACK_BYTES
        if held is not None and (hard == resource.RLIM_INFINITY or ceiling < hard):
            resource.setrlimit(resource.RLIMIT_DATA, (ceiling, hard))
        threading.Thread(target=self._watch, name="memory", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        resource.setrlimit(resource.RLIMIT_DATA, self._former)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_EVERY_S):
            if self.sample() > self.limit:
                return self._on_excess(self.most)

    def sample(self) -> int:
        """The growth now."""
        growth = own_bytes() - self._before
        self.most = max(self.most, growth)
        return growth


def own_bytes() -> int:
    """Memory of this process that no file backs; all of it where the system does not tell them apart."""
    with contextlib.suppress(FileNotFoundError):
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return int(psutil.Process().memory_info().rss)


def _data_bytes() -> int | None:
    """What RLIMIT_DATA counts of this process; None on systems that don't tell."""
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether an allocation was refused, by Python or numpy, or by torch on the CPU, which has no class for it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def asked_for(error: Exception) -> int:
    """Bytes that the refused allocation was for; 1 where the error does not say."""
    said = re.search(r"tried to allocate (\d+) bytes", str(error))
    return int(said[1]) if said else 1


def device_full(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError)
