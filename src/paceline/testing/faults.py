"""A seeded plan of faults against a running job's workers."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["kill", "hang"]
SIGNALS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}


class Target(Protocol):
    """What a fault needs of a job; `paceline.Job` is one."""

    @property
    def state(self) -> str: ...

    def workers(self) -> list[dict[str, object]]: ...


@dataclass(frozen=True)
class Fault:
    """after_s: since the fault before, or the start. pick: which of the live workers, as a fraction of them."""

    kind: Kind
    after_s: float
    pick: float


@dataclass(frozen=True)
class FaultPlan:
    """Faults in order. The same seed makes the same plan; what it meets depends on the moment, as in life."""

    faults: tuple[Fault, ...]

    @classmethod
    def random(cls, seed: int, count: int, mean_s: float, kinds: tuple[Kind, ...] = ("kill",)) -> FaultPlan:
        """`count` faults, `mean_s` seconds apart on average."""
        chance = random.Random(seed)  # noqa: S311 - a test plan
        faults = (Fault(chance.choice(kinds), chance.expovariate(1 / mean_s), chance.random()) for _ in range(count))
        return cls(tuple(faults))

    def run(self, job: Target) -> list[Fault]:
        """Inflict the faults while the job runs; return those that hit a worker on this machine."""
        done = []
        for fault in self.faults:
            time.sleep(fault.after_s)
            if job.state not in ("STARTING", "RUNNING"):
                continue
            pids = [pid for worker in job.workers() if isinstance(pid := worker["pid"], int)]
            if pids and _signal(pids[int(fault.pick * len(pids))], fault.kind):
                done.append(fault)
        return done


def _signal(pid: int, kind: Kind) -> bool:
    try:
        os.kill(pid, SIGNALS[kind])
    except ProcessLookupError:
        return False
    return True
