"""Who an agent is, beyond its name: the same before and after its death, and nobody else's."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Identity:
    """`text` is that of the last agent of this name, folder and machine; while that one lives, it is a fresh one.

    Hold it open as long as the agent runs: the lock on it, which the system lets go of with the process, tells the
    next one that this one is dead. Use it as a context manager.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._file = (folder / f"{name}.id").open("a+")
        known = ""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another agent of this name lives, or the disk has no locks: neither may be passed for
            known = uuid.uuid4().hex
        else:
            known = self._kept()
        # a copied folder, or one on a shared disk, may be on two machines at once
        self.text = f"{_machine()}/{known}"

    def _kept(self) -> str:
        self._file.seek(0)
        known = self._file.read().strip()
        if not known:
            known = uuid.uuid4().hex
            self._file.write(known)
            self._file.flush()
        return known

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _machine() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else f"{uuid.getnode():012x}"
