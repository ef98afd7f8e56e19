"""Plans of faults: chained or drawn from a seed, and inflicted when they are due."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

from paceline.testing.faults import Fault, FaultPlan


class FakeJob:
    """Moves on by ten steps whenever it is looked at; over once its processes are."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self.processes, self.step, self.scaled = processes, 0, [0]

    @property
    def state(self) -> str:
        return "RUNNING" if self.workers() else "SUCCEEDED"

    def info(self) -> dict[str, Any]:
        return {"step": self.step}

    def workers(self) -> list[dict[str, Any]]:
        self.step += 10
        alive = [(rank, process.pid) for rank, process in enumerate(self.processes) if process.poll() is None]
        return [{"rank": rank, "pid": pid, "last_step": self.step} for rank, pid in alive]

    def scale(self, workers: int) -> None:
        self.scaled.append(workers)


def sleepers(number: int) -> list[subprocess.Popen[bytes]]:
    return [subprocess.Popen(["sleep", "60"]) for _ in range(number)]


def test_a_plan_is_a_chain_of_faults() -> None:
    plan = FaultPlan().kill(rank=1, at_step=40).hang(after_s=0.5).scale(3)
    assert plan.faults == (Fault("kill", 40, rank=1), Fault("hang", after_s=0.5), Fault("scale", workers=3))


def test_the_same_seed_draws_the_same_plan_and_another_seed_another() -> None:
    assert FaultPlan.random(7, 5, 0.1, ("kill", "scale")) == FaultPlan.random(7, 5, 0.1, ("kill", "scale"))
    assert FaultPlan.random(7, 5, 0.1) != FaultPlan.random(8, 5, 0.1)


def test_a_fault_hits_the_named_worker_once_it_has_come_to_the_step() -> None:
    job = FakeJob(sleepers(2))
    try:
        hit = FaultPlan().kill(rank=1, at_step=100).scale(3).run(job)
        assert [fault.kind for fault in hit] == ["kill", "scale"]
        assert job.processes[1].wait(10) == -signal.SIGKILL
        assert job.processes[0].poll() is None
        assert job.step >= 100
        assert job.scaled == [0, 3]
    finally:
        for process in job.processes:
            process.kill()
            process.wait()


def test_a_plan_ends_with_its_job_and_tells_what_hit() -> None:
    job = FakeJob(sleepers(2))
    hit = FaultPlan().kill_all().kill(at_step=10**6).run(job)
    assert [fault.kind for fault in hit] == ["kill_all"]
    assert [process.wait(10) for process in job.processes] == [-signal.SIGKILL] * 2


class Uncommitted(FakeJob):
    """Nothing is committed until its workers have been looked at often."""

    def info(self) -> dict[str, Any]:
        return {"step": 1 if self.step > 200 else 0}


def test_a_third_fault_in_a_row_waits_for_a_commit_whatever_steps_the_workers_have_done() -> None:
    job = Uncommitted(sleepers(3))
    try:
        hit = FaultPlan().kill(rank=0).kill(rank=1).kill(rank=2).run(job)
        assert len(hit) == 3
        assert job.step > 200
        assert [process.wait(10) for process in job.processes] == [-signal.SIGKILL] * 3
    finally:
        for process in job.processes:
            process.kill()
            process.wait()
