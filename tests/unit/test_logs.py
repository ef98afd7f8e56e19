"""What workers printed: kept up to a bound for each rank, with a note where something was left out, and read in pages."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.workerlog import KEPT_BYTES, MOST_UNSENT_BYTES, WorkerLog
from paceline.master.logs import PAGE_BYTES, Logs
from paceline.messages.from_agent import LogLines


def printed(text: str, rank: int = 0, attempt: int = 1, cut: int = 0, job: str = "job") -> LogLines:
    return LogLines(job_id=job, attempt=attempt, rank=rank, text=text, cut=cut)


def whole(logs: Logs, rank: int | None = None, job: str = "job") -> str:
    """All pages."""
    texts, place = [], 0
    while True:
        text, end = logs.page(job, place, rank)
        if end == place:
            return "".join(texts)
        texts.append(text)
        place = end


def test_pages_hold_all_in_the_order_of_arrival_and_those_of_a_rank_only_its_own(tmp_path: Path) -> None:
    logs = Logs(tmp_path, bound=10**9)
    logs.append(printed("a\nb\n", rank=0))
    logs.append(printed("of another job\n", job="other"))
    logs.append(printed("x" * PAGE_BYTES + "\n", rank=1))
    text, place = logs.page("job", 0)
    assert text.startswith("[1.0] a\n[1.0] b\n[1.1] xxx")
    assert logs.page("job", place) == ("", place)
    logs.append(printed("c\n", rank=0, attempt=2))
    assert logs.page("job", place)[0] == "[2.0] c\n"
    assert whole(logs, rank=0) == "[1.0] a\n[1.0] b\n[2.0] c\n"
    logs.close()
    assert whole(Logs(tmp_path, bound=10**9), rank=0) == "[1.0] a\n[1.0] b\n[2.0] c\n"


@given(st.integers(20, 200), st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(0, 5)), max_size=40))
def test_of_each_rank_the_newest_are_kept_and_what_was_left_out_is_told_to_the_byte(
    bound: int, pieces: list[tuple[int, int, int]]
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        logs = Logs(Path(folder), bound)
        for number, (rank, length, cut) in enumerate(pieces):
            logs.append(printed(f"{number:03}" + "é" * length, rank, cut=cut))
            if number == len(pieces) // 2:  # a restarted master goes on with what is there
                logs.close()
                logs = Logs(Path(folder), bound)
        for rank in range(3):
            lines = whole(logs, rank).splitlines(keepends=True)
            told = [int(line.split()[2].replace(",", "")) for line in lines if "are left out here" in line]
            kept = [line for line in lines if "are left out here" not in line]
            mine = [
                (f"[1.{rank}] {n:03}" + "é" * size + "\n", cut)
                for n, (of, size, cut) in enumerate(pieces)
                if of == rank
            ]
            assert kept == [text for text, _ in mine][len(mine) - len(kept) :]
            assert sum(len(text.encode()) for text in kept) <= bound
            gone = [text for text, _ in mine][: len(mine) - len(kept)]
            assert sum(told) == sum(len(text.encode()) for text in gone) + sum(cut for _, cut in mine)
        logs.close()


# ---- on the node ----


def all_of(log: WorkerLog, ended: bool = False) -> tuple[str, int]:
    texts, left_out = [], 0
    while (found := log.unsent(ended)) != ("", 0):
        texts.append(found[0])
        left_out += found[1]
    return "".join(texts), left_out


def test_a_half_line_waits_for_its_other_half_or_for_the_end(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "log")
    assert all_of(log) == ("", 0)
    log.path.write_text("one\ntw")
    assert all_of(log) == ("one\n", 0)
    with log.path.open("a") as file:
        file.write("o\nthree")
    assert all_of(log) == ("two\n", 0)
    assert all_of(log, ended=True) == ("three", 0)


def test_of_what_is_printed_faster_than_it_is_fetched_the_oldest_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "log")
    lines = "".join(f"{number:09}\n" for number in range(MOST_UNSENT_BYTES // 5))
    log.path.write_text(lines)
    text, left_out = all_of(log)
    assert lines.endswith(text)
    assert MOST_UNSENT_BYTES - 100 < len(text) <= MOST_UNSENT_BYTES
    assert left_out + len(text) == len(lines)
    assert log.tail() == lines[-4000:]


def test_what_was_sent_on_takes_no_room_on_the_nodes_disk(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "log")
    piece = b"x" * (KEPT_BYTES - 1) + b"\n"
    handle = os.open(log.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(8):
        os.write(handle, piece)
        assert all_of(log) == (piece.decode(), 0)
    os.close(handle)
    found = log.path.stat()
    assert found.st_size == 8 * KEPT_BYTES
    assert found.st_blocks * 512 <= 3 * KEPT_BYTES
    assert log.path.read_bytes().endswith(piece)


def test_what_a_job_printed_can_be_forgotten_and_others_keep_theirs(tmp_path: Path) -> None:
    logs = Logs(tmp_path, bound=10**9)
    logs.append(printed("a\n"))
    logs.append(printed("b\n", job="other"))
    logs.forget("job")
    assert (whole(logs), whole(logs, job="other")) == ("", "[1.0] b\n")
