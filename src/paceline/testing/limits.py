"""How much processor time and memory a process tree gets: cgroups of version 1."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from paceline.testing.system import EmulationUnavailable, left_behind, mounts_of, unique_name

PERIOD_US = 10_000  # a longer one stops a worker for longer at a time than a step of a small model takes
LEAVE_WITHIN_S = 10.0

# Enters the groups whose files come before "--", then becomes the command behind it: no moment outside them.
_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 70; shift; done; shift; exec "$@"'


class Limits:
    """A group of processes with at most `cores` cores' worth of time and `memory` bytes; None: no limit.

    Whatever is started behind `within` belongs to it, with its children. A context manager: at its end the processes
    of the group are killed and the group is removed. Raises EmulationUnavailable where the machine can't limit.
    """

    def __init__(self, cores: float | None = None, memory: int | None = None) -> None:
        name = f"paceline-{unique_name().removeprefix('pl')}"
        self._cores, self._memory = cores, memory
        self._cpu = _mount("cpu") / name
        self._folders = [self._cpu, *([_mount("memory") / name] if memory else [])]

    @property
    def entries(self) -> list[str]:
        """The files into which a process writes its id to enter; the children that it has already stay outside."""
        return [str(folder / "cgroup.procs") for folder in self._folders]

    @property
    def within(self) -> list[str]:
        """The start of a command line; what follows runs in this group."""
        return ["sh", "-c", _ENTER, "sh", *self.entries, "--"]

    def set_cores(self, cores: float | None) -> None:
        """Change the limit, also of what runs already."""
        quota_us = -1 if cores is None else max(1000, round(cores * PERIOD_US))
        (self._cpu / "cpu.cfs_quota_us").write_text(str(quota_us))

    def __enter__(self) -> Limits:
        sweep_limits()
        try:
            for folder in self._folders:
                folder.mkdir()
            (self._cpu / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            self.set_cores(self._cores)
            if self._memory:
                (self._folders[1] / "memory.limit_in_bytes").write_text(str(self._memory))
        except OSError as error:
            _remove(self._folders)
            raise EmulationUnavailable(
                f"cgroups can't be written: {error}.", "Run as root, outside a container."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self._folders)


def sweep_limits() -> None:
    """Remove the groups of processes that are gone without having done so."""
    for mount in (_mount("cpu"), _mount("memory")):
        _remove([folder for folder in mount.glob("paceline-*") if left_behind(folder.name)])


def _mount(controller: str) -> Path:
    found = mounts_of("cgroup").get(controller)
    if found is None:
        raise EmulationUnavailable(
            f"The {controller} controller of cgroups, version 1, is not mounted.",
            "Boot with systemd.unified_cgroup_hierarchy=0, or leave cpu and memory limits out.",
        )
    return found


def _remove(folders: Sequence[Path]) -> None:
    """Kill what is in the groups, and remove those that exist."""
    deadline = time.monotonic() + LEAVE_WITHIN_S
    for folder in folders:
        while folder.exists():
            for pid in (folder / "cgroup.procs").read_text().split():
                _kill(int(pid))
            try:
                folder.rmdir()
            except OSError:  # busy until its last process has been collected
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
