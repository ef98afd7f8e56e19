"""Runs one contestant at a time, in a process of its own, and lets nothing of it outlive its turn."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

CONTESTANTS = Path(__file__).parent / "contestants"
PR_SET_CHILD_SUBREAPER = 36
TAIL_CHARS = 3000
LEAVE_WITHIN_S = 20.0
STOP_WITHIN_S = 5.0

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class ContestantFailed(Exception):
    """It ended with an error, or did not end in time; holds the last of what it printed."""


def adopt_orphans() -> None:
    """Become the parent of whatever a contestant leaves behind, so that it can be found and ended."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run_alone(
    command: Sequence[str], timeout_s: float, cores: Collection[int] | None = None
) -> tuple[float, dict[str, Any] | None]:
    """Run to the end; return (seconds of its whole process, the JSON object on its last line of stdout).

    cores: that it and its children may use. Raises ContestantFailed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **ENVIRONMENT},
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )  # fmt: skip
        overdue = threading.Timer(timeout_s, process.kill)  # a wait with a timeout would poll, and blur short times
        overdue.start()
        status = process.wait()
        seconds = time.perf_counter() - started
        overdue.cancel()
        end_leftovers()
        if status != 0:
            why = f"ended with {status}" if seconds < timeout_s else f"took more than {timeout_s:.0f} s"
            raise ContestantFailed(f"{_short(command)} {why}:\n{_tail(err)}\n{_tail(out)}")
        return seconds, _last_object(out)


@contextmanager
def running(command: Sequence[str]) -> Iterator[Callable[[], None]]:
    """A contestant that has no end of its own: runs meanwhile, and is then ended with all that it started.

    Yields a check that raises ContestantFailed where it has ended by itself.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, **ENVIRONMENT}
        )

        def check() -> None:
            if process.poll() is not None:
                raise ContestantFailed(f"it ended with {process.returncode}")

        try:
            yield check
        except ContestantFailed as failed:
            raise ContestantFailed(f"{_short(command)}: {failed}:\n{_tail(err)}\n{_tail(out)}") from failed
        finally:
            process.terminate()
            end_leftovers(within_s=STOP_WITHIN_S)
            process.wait()


def _short(command: Sequence[str]) -> str:
    return " ".join(Path(part).name if os.sep in part else part for part in command)


def _all(file: Any) -> str:
    file.seek(0)
    return str(file.read()).strip()


def _tail(file: Any) -> str:
    return _all(file)[-TAIL_CHARS:]


def _last_object(file: Any) -> dict[str, Any] | None:
    lines = _all(file).splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def end_leftovers(within_s: float = LEAVE_WITHIN_S) -> None:
    """Wait for every descendant of this process to leave, and make those that do not."""
    _, alive = psutil.wait_procs(_descendants(), timeout=within_s)
    for process in {*alive, *_descendants()}:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    _reap()


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _reap() -> None:
    """Collect what was adopted and has ended, so that no zombie holds a place in the process table."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def python(script: str, *arguments: str) -> list[str]:
    """The command of a contestant that is a plain script."""
    return [sys.executable, str(CONTESTANTS / script), *arguments]
