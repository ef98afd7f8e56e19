"""Faults from within: they strike at their point, in as many processes as they say, and nowhere else."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from paceline.testing.sabotage import Sabotage, Sabotaged

FORK = multiprocessing.get_context("fork")


def exit_code_after(passes: int, fault: Sabotage) -> int | None:
    """How a fresh process ends that passes the point so often."""

    def run() -> None:
        for _ in range(passes):
            fault()

    process = FORK.Process(target=run)
    process.start()
    process.join(30)
    return process.exitcode


def test_the_process_that_passes_the_point_is_struck_and_its_successor_is_not(tmp_path: Path) -> None:
    fault = Sabotage(str(tmp_path), at_pass=3)
    assert exit_code_after(2, fault) == 0
    assert fault.struck() == 0
    assert exit_code_after(3, fault) == -signal.SIGKILL
    assert exit_code_after(3, fault) == 0
    assert fault.struck() == 1


def test_spared_processes_go_on_and_the_next_are_struck(tmp_path: Path) -> None:
    fault = Sabotage(str(tmp_path), spared=1, times=2)
    assert [exit_code_after(1, fault) for _ in range(4)] == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    assert fault.struck() == 2


def test_a_raising_fault_raises_in_its_caller_before_the_function_runs(tmp_path: Path) -> None:
    calls: list[int] = []
    passing = Sabotage(str(tmp_path), "raise", at_pass=2).before(calls.append)
    passing(1)
    with pytest.raises(Sabotaged):
        passing(2)
    passing(3)
    assert calls == [1, 3]


def test_a_fault_that_strikes_its_caller_cannot_come_later(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has gone on"):
        Sabotage(str(tmp_path), "raise", delay_s=0.1)
