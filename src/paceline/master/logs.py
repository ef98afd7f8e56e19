"""What jobs' workers printed, in the order in which it arrived: of each rank the newest, up to a bound.

In a database of its own: it is written some times a second, and may lose its last moment where the machine goes down.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from paceline.messages.from_agent import LogLines

PAGE_BYTES = 256 * 1024
SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT, attempt INTEGER, rank INTEGER, text TEXT, nbytes INTEGER, cut INTEGER
);
CREATE INDEX IF NOT EXISTS of_job ON pieces (job, place);
CREATE INDEX IF NOT EXISTS of_rank ON pieces (job, rank, place);
"""
PAGE = """
SELECT place, attempt, rank, text, cut FROM pieces
WHERE job = :job AND place > :after AND (:rank IS NULL OR rank = :rank) ORDER BY place
"""


class Logs:
    """Thread-safe. bound: bytes of each rank of a job that are kept; where older ones were, their number is told."""

    def __init__(self, folder: Path, bound: int) -> None:
        self._bound = bound
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], int] = {}
        self._missed: dict[tuple[str, int], int] = {}  # bytes for which the disk had no room
        self._db = sqlite3.connect(folder / "logs.db", check_same_thread=False, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=OFF"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        self._db.close()

    def append(self, lines: LogLines) -> None:
        """Add what a worker has printed, each line behind `[attempt.rank]`, and what its node has left out before.

        Raises OSError where it can't be written; the next time tells of it.
        """
        text = "".join(f"[{lines.attempt}.{lines.rank}] {line}\n" for line in lines.text.splitlines())
        of_rank, nbytes = (lines.job_id, lines.rank), len(text.encode())
        cut = lines.cut + self._missed.pop(of_rank, 0)
        piece = (lines.job_id, lines.attempt, lines.rank, text, nbytes, cut)
        try:
            with self._lock:
                kept = self._kept.get(of_rank)
                if kept is None:
                    query = "SELECT COALESCE(SUM(nbytes), 0) FROM pieces WHERE job = ? AND rank = ?"
                    (kept,) = self._db.execute(query, of_rank).fetchone()
                self._db.execute(
                    "INSERT INTO pieces (job, attempt, rank, text, nbytes, cut) VALUES (?, ?, ?, ?, ?, ?)", piece
                )
                self._kept[of_rank] = kept + nbytes - self._cut(of_rank, kept + nbytes - self._bound)
        except sqlite3.OperationalError as error:
            self._missed[of_rank] = cut + nbytes
            raise OSError(f"the jobs' logs can't be written: {error}") from error

    def _cut(self, of_rank: tuple[str, int], excess: int) -> int:
        """Remove the oldest pieces, down to the bound; the last of them stays as the note of it. Returns the bytes."""
        gone: list[int] = []
        freed = left_out = 0
        query = "SELECT place, nbytes, cut FROM pieces WHERE job = ? AND rank = ? ORDER BY place"
        for place, nbytes, cut in self._db.execute(query, of_rank):
            if freed >= excess:
                break
            gone.append(place)
            freed += nbytes
            left_out += nbytes + cut
        if freed:
            note = "UPDATE pieces SET text = '', nbytes = 0, cut = ? WHERE place = ?"
            self._db.execute(note, (left_out, gone.pop()))
            self._db.executemany("DELETE FROM pieces WHERE place = ?", [(place,) for place in gone])
        return freed

    def forget(self, job_id: str) -> None:
        """Remove what a job printed. Raises OSError where it can't be written."""
        try:
            with self._lock:
                self._db.execute("DELETE FROM pieces WHERE job = ?", (job_id,))
        except sqlite3.OperationalError as error:
            raise OSError(f"the jobs' logs can't be written: {error}") from error

    def page(self, job_id: str, after: int, rank: int | None = None) -> tuple[str, int]:
        """(some text, where it ends): what came after a place, 0 for the first; the same place where there is no more.

        rank: of this one alone.
        """
        texts: list[str] = []
        nbytes = 0
        with self._lock:
            for place, attempt, of, text, cut in self._db.execute(PAGE, {"job": job_id, "after": after, "rank": rank}):
                texts += [f"[{attempt}.{of}] … {cut:,} bytes are left out here …\n"] if cut else []
                texts.append(text)
                after, nbytes = place, nbytes + len(text)
                if nbytes >= PAGE_BYTES:
                    break
        return "".join(texts), after
