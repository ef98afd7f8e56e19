"""Faults that strike from within, at an exact point of a user's code: the product needs no hook for them.

A `Sabotage` is called where it is to strike: as a hook of a model, a parameter or an optimizer, or before a function.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

Act = Literal["kill", "kill_group", "hang", "deadlock", "raise"]

_passes: Counter[str] = Counter()  # of this process, by the fault's folder


class Sabotaged(Exception):
    """What a fault with act="raise" raises."""


@dataclass(frozen=True)
class Sabotage:
    """Strikes the process that passes here for the `at_pass`-th time, counted from 1.

    folder: one of its own for each fault, on a disk that all workers share. In it the processes that come so far
    number themselves: the first `spared` go on, the next `times` are struck, so that a replacement is not struck again.

    act: "kill" the process, or with its data loaders ("kill_group", in a worker); "hang" it (stopped, it sends no
    beat); "deadlock" the calling thread alone; "raise" Sabotaged. delay_s: strike so long after the pass, while the
    caller goes on; only a kill or a hang can wait.
    """

    folder: str
    act: Act = "kill"
    at_pass: int = 1
    spared: int = 0
    times: int = 1
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.delay_s and self.act in ("raise", "deadlock"):
            raise ValueError(f"act={self.act!r} strikes the caller, which has gone on after {self.delay_s} s")

    def __call__(self, *_: object, **__: object) -> None:
        """Pass the point. Takes and ignores what any hook is given."""
        _passes[self.folder] += 1
        if _passes[self.folder] != self.at_pass:
            return
        if not self.spared <= self._number() < self.spared + self.times:
            return
        if self.delay_s:
            threading.Thread(target=self._strike_later, name="sabotage", daemon=True).start()
        else:
            _strike(self.act)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with this point before each call."""
        return partial(_passing, self, function)

    def struck(self) -> int:
        """How many processes it has struck so far."""
        return min(self.times, max(0, len(os.listdir(self.folder)) - self.spared))

    def _number(self) -> int:
        """This process's place among all that came here; a file that only one of them can create says so."""
        for number in count():
            try:
                os.close(os.open(Path(self.folder, str(number)), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            return number
        raise AssertionError("count() has no end")

    def _strike_later(self) -> None:
        time.sleep(self.delay_s)
        _strike(self.act)


def _passing(sabotage: Sabotage, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    sabotage()
    return function(*args, **kwargs)


def _strike(act: Act) -> None:
    match act:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill_group":
            os.killpg(0, signal.SIGKILL)
        case "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "deadlock":
            threading.Event().wait()
        case "raise":
            raise Sabotaged("struck by a fault")
