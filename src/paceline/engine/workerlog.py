"""What one worker prints, on its way from its file to the master: never more in between than a bound."""

from __future__ import annotations

import os
from pathlib import Path

from paceline.engine.holes import free_beginning

TAIL_BYTES = 4000
CHUNK_BYTES = 64 * 1024
MOST_UNSENT_BYTES = 4 * 2**20
KEPT_BYTES = 2**20  # on disk behind what was sent: a script's worker looks there for its last traceback


class WorkerLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._sent = self._freed = 0

    def unsent(self, ended: bool) -> tuple[str, int]:
        """(what it has printed since, bytes left out before that); without the line that it may be printing still.

        The oldest are left out where it prints faster than they are fetched.
        """
        if not self.path.exists():
            return "", 0
        with self.path.open("rb") as file:
            begin = max(self._sent, os.fstat(file.fileno()).st_size - MOST_UNSENT_BYTES)
            file.seek(begin)
            data = file.read(CHUNK_BYTES)
        if begin > self._sent:  # not with half a line
            at = data.find(b"\n") + 1
            begin, data = begin + at, data[at:]
        if not ended and len(data) < CHUNK_BYTES:
            data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        cut, self._sent = begin - self._sent, begin + len(data)
        self._free()
        return data.decode(errors="replace"), cut

    def _free(self) -> None:
        done = self._sent - KEPT_BYTES
        if done - self._freed >= KEPT_BYTES:
            free_beginning(self.path, done)
            self._freed = done

    def tail(self) -> str:
        """Its last words."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
