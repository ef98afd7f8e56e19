"""A plan of faults against a running job, from outside: signals to its processes, and changes of its size."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import psutil

Kind = Literal["kill", "hang", "kill_all", "kill_agent", "kill_fork_server", "scale"]
OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
POLL_S = 0.01
MOST_IN_VAIN = 2  # faults in a row with no commit between them: a job that is lost so a third time is given up


class Target(Protocol):
    """What a fault needs of a job; `paceline.Job` is one."""

    @property
    def state(self) -> str: ...

    def info(self) -> dict[str, Any]: ...

    def workers(self) -> list[dict[str, Any]]: ...

    def scale(self, workers: int) -> None: ...


@dataclass(frozen=True)
class Fault:
    """One fault, due `after_s` after the one before and once the master knows of a worker that is at `at_step`.

    rank: of the worker that is hit, or whose agent or fork server is; where it is None, `pick` chooses one of the live
    workers, as a fraction of them. workers: what a "scale" asks for.
    """

    kind: Kind
    at_step: int = 0
    after_s: float = 0.0
    rank: int | None = None
    pick: float = 0.0
    workers: int = 0


@dataclass(frozen=True)
class FaultPlan:
    """Faults in order: `FaultPlan().kill(rank=1, at_step=40).scale(3, at_step=60)`.

    A fault from outside hits at the step or soon after it; `Sabotage` strikes at an exact point.
    """

    faults: tuple[Fault, ...] = ()

    def kill(self, rank: int | None = None, at_step: int = 0, after_s: float = 0.0) -> FaultPlan:
        """SIGKILL one worker."""
        return self._then(Fault("kill", at_step, after_s, rank))

    def hang(self, rank: int | None = None, at_step: int = 0, after_s: float = 0.0) -> FaultPlan:
        """SIGSTOP one worker: it lives, and says nothing."""
        return self._then(Fault("hang", at_step, after_s, rank))

    def kill_all(self, at_step: int = 0, after_s: float = 0.0) -> FaultPlan:
        """SIGKILL every worker at once: the attempt is lost."""
        return self._then(Fault("kill_all", at_step, after_s))

    def kill_agent(self, rank: int | None = None, at_step: int = 0, after_s: float = 0.0) -> FaultPlan:
        """SIGKILL the agent that keeps this worker: its node is lost."""
        return self._then(Fault("kill_agent", at_step, after_s, rank))

    def kill_fork_server(self, rank: int | None = None, at_step: int = 0, after_s: float = 0.0) -> FaultPlan:
        """SIGKILL the process that forked this worker."""
        return self._then(Fault("kill_fork_server", at_step, after_s, rank))

    def scale(self, workers: int, at_step: int = 0, after_s: float = 0.0) -> FaultPlan:
        """Ask for so many workers: others join, or some are drained."""
        return self._then(Fault("scale", at_step, after_s, workers=workers))

    @classmethod
    def random(
        cls, seed: int, count: int, mean_s: float, kinds: tuple[Kind, ...] = ("kill",), most_workers: int = 4
    ) -> FaultPlan:
        """`count` faults, `mean_s` seconds apart on average. The same seed makes the same plan.

        What a fault meets depends on the moment, as in life. most_workers: that a "scale" asks for.
        """
        chance = random.Random(seed)  # noqa: S311 - a test plan
        return cls(
            tuple(
                Fault(
                    chance.choice(kinds),
                    after_s=chance.expovariate(1 / mean_s),
                    pick=chance.random(),
                    workers=chance.randint(1, most_workers),
                )
                for _ in range(count)
            )
        )

    def run(self, job: Target) -> list[Fault]:
        """Inflict the faults, each as soon as it is due; return those that hit, until the job is over."""
        hit: list[Fault] = []
        reached, in_vain = -1, 0
        for fault in self.faults:
            time.sleep(fault.after_s)
            while not _due(fault, job) or (in_vain == MOST_IN_VAIN and _step(job) <= reached):
                if job.state in OVER:
                    return hit
                time.sleep(POLL_S)
            step = _step(job)
            if _inflict(fault, job):
                hit.append(fault)
                in_vain = 1 if step > reached else in_vain + 1
                reached = max(reached, step)
        return hit

    def _then(self, fault: Fault) -> FaultPlan:
        return replace(self, faults=(*self.faults, fault))


def _due(fault: Fault, job: Target) -> bool:
    workers = [worker for worker in job.workers() if worker["pid"] is not None]
    if fault.rank is not None and fault.rank not in [worker["rank"] for worker in workers]:
        return False
    return bool(workers) and max(worker["last_step"] for worker in workers) >= fault.at_step


def _step(job: Target) -> int:
    """The last one that was committed: what workers did beyond it goes with them."""
    return int(job.info()["step"])


def _inflict(fault: Fault, job: Target) -> bool:
    """Whether it hit: a process may have ended, or the job, since the fault was due."""
    if fault.kind == "scale":
        if job.state != "RUNNING":
            return False
        job.scale(fault.workers)
        return True
    workers = {worker["rank"]: worker["pid"] for worker in job.workers() if worker["pid"] is not None}
    if not workers or (fault.rank is not None and fault.rank not in workers):
        return False
    if fault.kind == "kill_all":
        return any([_signal(pid, signal.SIGKILL) for pid in workers.values()])
    pid = workers[fault.rank] if fault.rank is not None else list(workers.values())[int(fault.pick * len(workers))]
    return _HITS[fault.kind](pid)


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _kill_ancestor(pid: int, generations: int) -> bool:
    try:
        process: psutil.Process | None = psutil.Process(pid)
        for _ in range(generations):
            process = process.parent() if process else None
    except psutil.NoSuchProcess:
        return False
    # a worker whose fork server is gone has another parent, which is not ours to kill
    if process is None or "paceline.engine." not in " ".join(process.cmdline()):
        return False
    return _signal(process.pid, signal.SIGKILL)


_HITS: dict[Kind, Callable[[int], bool]] = {
    "kill": lambda pid: _signal(pid, signal.SIGKILL),
    "hang": lambda pid: _signal(pid, signal.SIGSTOP),
    "kill_fork_server": lambda pid: _kill_ancestor(pid, 1),
    "kill_agent": lambda pid: _kill_ancestor(pid, 2),
}
