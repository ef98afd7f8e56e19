"""One contestant's turn under kills: without any for a while, then one every so many seconds, for each interval."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil
from _alone import ContestantFailed, running
from _steplog import Step, commits, rate, recovery, redone

WARM_UP_STEPS = 20
GO_ON_WITHIN_S = 120.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Schedule:
    """fault_free_s: without kills. kills: an interval in seconds -> the moments, in seconds from its phase's start."""

    fault_free_s: float
    kills: dict[float, list[float]]

    @classmethod
    def random(cls, seed: int, fault_free_s: float, every_s: Sequence[float], counts: Sequence[int]) -> Schedule:
        """One kill in each interval, in its middle half: so that none keeps step with the checkpoints."""
        chance = random.Random(seed)
        kills = {
            every: [(at + chance.uniform(0.25, 0.75)) * every for at in range(count)]
            for every, count in zip(every_s, counts, strict=True)
        }
        return cls(fault_free_s, kills)


@dataclass
class Phase:
    """start, end: by the clock. every_s: None without kills. kills: when a worker was killed.

    spared: how often none was, because none lived: the contestant had not come back from the kill before.
    """

    every_s: float | None
    start: float
    end: float
    kills: list[float] = field(default_factory=list)
    spared: int = 0


@dataclass(frozen=True)
class Turn:
    """What was seen. committed: the steps that count. computed: those that the workers wrote down.

    events: the master's, where there is one.
    """

    phases: list[Phase]
    committed: list[Step]
    computed: list[Step]
    events: list[dict[str, Any]]

    def rate(self, phase: Phase) -> float:
        found = rate(self.committed, phase.start, phase.end)
        assert found is not None, "the turn waited for it"
        return found

    def recoveries(self, phase: Phase) -> list[float]:
        """Seconds from each kill to the next committed step that was computed after it."""
        found = [recovery(self.committed, kill) for kill in phase.kills]
        return [seconds for seconds in found if seconds is not None]

    def redone(self, phase: Phase) -> list[int]:
        """Of each kill, the steps that were complete and were computed again."""
        return [redone(self.computed, *pair) for pair in zip_longest(phase.kills, phase.kills[1:])]


def take_turn(command: Callable[[str], list[str]], schedule: Schedule, seed: int) -> Turn:
    """Run a contestant through the schedule. command: from the folder for its logs. Raises ContestantFailed."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running(command(name)) as check:
            _await(lambda: _furthest(folder) >= WARM_UP_STEPS, check, "has not begun")
            phases = [_phase(folder, check, chance, None, schedule.fault_free_s, [])]
            for every, moments in schedule.kills.items():
                phases.append(_phase(folder, check, chance, every, every * len(moments), moments))
        computed, events = _computed(folder), _events(folder)
        return Turn(phases, _committed(computed, events), computed, events)


def _phase(
    folder: Path,
    check: Callable[[], None],
    chance: random.Random,
    every_s: float | None,
    seconds: float,
    moments: Sequence[float],
) -> Phase:
    """Kill at the moments, wait for the end and for a step after it: a turn ends with a contestant that trains."""
    phase = Phase(every_s, time.time(), time.time() + seconds)
    for moment in moments:
        _sleep_until(phase.start + moment, check)
        if _kill_one(folder, chance):
            phase.kills.append(time.time())
        else:
            phase.spared += 1
    _sleep_until(phase.end, check)

    def went_on() -> bool:
        committed = _committed(_computed(folder), _events(folder))
        again = [recovery(committed, kill) for kill in phase.kills]
        return None not in again and rate(committed, phase.start, phase.end) is not None

    _await(went_on, check, "has not gone on after a kill")
    return phase


def _kill_one(folder: Path, chance: random.Random) -> bool:
    """Kill a random worker; whether one lived."""
    workers = [process for process in psutil.Process().children(recursive=True) if _is_worker(process, folder)]
    if workers:
        chance.choice(workers).kill()
    return bool(workers)


def _is_worker(process: psutil.Process, folder: Path) -> bool:
    try:
        return (folder / f"{process.pid}.steps").exists() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _sleep_until(moment: float, check: Callable[[], None]) -> None:
    while (left := moment - time.time()) > 0:
        check()
        time.sleep(min(left, LOOK_EVERY_S))


def _await(condition: Callable[[], bool], check: Callable[[], None], otherwise: str) -> None:
    deadline = time.time() + GO_ON_WITHIN_S
    while not condition():
        check()
        if time.time() > deadline:
            raise ContestantFailed(f"it {otherwise} within {GO_ON_WITHIN_S:.0f} s")
        time.sleep(LOOK_EVERY_S)


# ---- what the contestants write ----


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last may be half written


def _computed(folder: Path) -> list[Step]:
    return [Step(**line) for path in sorted(folder.glob("*.steps")) for line in _lines(path)]


def _events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events"
    return _lines(path) if path.exists() else []


def _committed(computed: list[Step], events: list[dict[str, Any]]) -> list[Step]:
    """A master's word where there is a master; otherwise a step counts as soon as a worker has taken it."""
    if not events:
        return computed
    progress = [e for e in events if e["kind"] == "progress"]
    batch = computed[0].samples // computed[0].step
    return commits(((e["at"], e["step"], e["samples_per_s"], e["loss"]) for e in progress), batch)


def _furthest(folder: Path) -> int:
    return max((step.step for step in _computed(folder)), default=0)
