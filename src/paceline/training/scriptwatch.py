"""Beside a script that runs: sends on what it reports, and counts the progress that it is seen to make."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from paceline.messages.from_worker import Reported
from paceline.messages.message import Message
from paceline.reports import ReportReader
from paceline.training.activity import Activity, processor_s
from paceline.training.channel import MasterGone
from paceline.training.monitor import Monitor
from paceline.training.tensorboard import EventFiles

REPORT_EVERY_S = 0.5


@dataclass
class ScriptWatch:
    """A context manager: a thread of its own, as long as the script runs. log: what the script prints into.

    reports: the file of `paceline.report`. events: TensorBoard's, where they are this rank's to tell.
    """

    pid: int
    log: Path
    reports: Path
    events: EventFiles | None
    send: Callable[[Message], None]
    monitor: Monitor

    def __enter__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="script watch", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        """Twice a second, and once more at its end."""
        reader = ReportReader()
        activity = Activity(time.monotonic(), self.log.stat().st_size, lambda: processor_s(self.pid))
        with suppress(MasterGone):  # the worker ends then
            last = False
            while not last:
                last = self._ended.wait(REPORT_EVERY_S)
                told = self._tell(reader)
                if activity.moved(time.monotonic(), self.log.stat().st_size) or told:
                    self.monitor.cells += 1

    def _tell(self, reader: ReportReader) -> bool:
        found = [reader.read(str(self.reports))]
        if self.events is not None:
            with suppress(OSError):  # the script may remove them at any moment; what is left is read the next time
                found.insert(0, self.events.read())
        told = [Reported(step=step, values=values) for step, values in found if values or step is not None]
        for report in told:
            self.send(report)
        return bool(told)
