"""Performs what the queue's policy decides: who starts, who leaves, who grows, and what those are told who wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from paceline.errors import PacelineError, Unplaceable
from paceline.master import probing
from paceline.master.cluster import Cluster
from paceline.master.events import Event, Planned, Preempted, ProbeWanted, Recruited, Refused, Unplaced
from paceline.master.job import Job
from paceline.master.knowledge import Knowledge
from paceline.master.lives import AnyJob, present_plan
from paceline.master.models import JobRow
from paceline.master.newcomers import next_worker
from paceline.master.placing import planner_of, seconds_left
from paceline.master.profiles import too_large, with_memory
from paceline.master.scriptstates import Begun, ScriptEnding, ScriptJob, ScriptSaving
from paceline.master.states import Queued, Recovering, Running, Waiting
from paceline.plan import Node, Plan
from paceline.plan import Waiting as QueuePlace
from paceline.planner.planner import plan_or_wait
from paceline.planner.queue import (
    Decision,
    Policy,
    Preempt,
    RunningJob,
    Start,
    Wait,
    WaitingJob,
    charged,
    decide,
    workers_left,
)
from paceline.planner.resources import Hold, cores_of
from paceline.planner.sharded import decided
from paceline.spec import Submission

LOOK_AGAIN_S = 5.0  # while jobs wait: time alone changes ranks, and who may be asked to leave

Handle = Callable[[str, Event], Awaitable[None]]
log = structlog.get_logger("scheduler")


@dataclass
class _Entry:
    """What the queue knows of an unfinished job. since: it came, or was asked to leave. rank: that it started with.

    linked: whether the links that its workers might use have been asked for.
    """

    user: str
    since: float
    rank: float
    linked: bool = False


class Scheduler:
    """One pass at a time. jobs: the controller's unfinished ones; handle: takes an event of a job."""

    def __init__(
        self, jobs: Mapping[str, AnyJob], cluster: Cluster, policy: Policy, knowledge: Knowledge, handle: Handle
    ) -> None:
        self._jobs, self._cluster, self._policy = jobs, cluster, policy
        self._knowledge, self._handle = knowledge, handle
        self._measuring: dict[str, asyncio.Task[None]] = {}  # by job: links that its workers might use
        self._entries: dict[str, _Entry] = {}
        self._usage: dict[str, float] = {}
        self._charging: tuple[float, dict[str, float]] = (time.monotonic(), {})  # since when, cores of each user
        self._wake, self._passed = asyncio.Event(), asyncio.Event()
        self.waits: dict[str, Wait] = {}

    # ---- from the controller ----

    def adopt(self, row: JobRow) -> None:
        self._entries[row.id] = _Entry(row.user, row.created_at, row.priority)

    def forget(self, job_id: str) -> None:
        self._entries.pop(job_id, None)
        self.waits.pop(job_id, None)

    def wake(self) -> None:
        self._wake.set()

    def recall(self, rows: Iterable[JobRow], now: float) -> None:
        """What users had under former masters, by the jobs' plans and training times."""
        for row in rows:
            if row.plan is not None:
                cores = len(row.plan["workers"]) * row.plan["cores_per_worker"]
                had = {row.user: row.elapsed_s * cores}
                faded = charged(had, {}, max(0.0, now - (row.ended_at or now)), self._policy.half_life_s)
                self._usage[row.user] = self._usage.get(row.user, 0.0) + faded[row.user]

    async def looked_at(self, job_id: str, within_s: float) -> None:
        """Return once the job has started, or has a place in the queue; or when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while job_id not in self.waits and self._is_waiting(job_id):
                    await self._passed.wait()

    async def foresee(self, submission: Submission, user: str) -> Plan:
        """What would be decided now for such a job, with its place in the queue where it would have to wait.

        Nothing is measured for it. Raises Unplaceable.
        """
        nodes, known = self._cluster.nodes(), self._knowledge.of(submission)
        submission = await asyncio.to_thread(decided, nodes, submission, known)
        options = submission.options
        newcomer = WaitingJob("", user, options.priority, 0.0, options.threads)
        jobs: dict[str, AnyJob] = {**self._jobs, "": Job(id="", submission=submission)}
        decisions = await self._decisions([*self._waiting(time.time()), newcomer], jobs)
        waits = (d for d in decisions if isinstance(d, Wait) and d.job == "")
        place = next((QueuePlace(place=wait.place, expected_start_s=wait.start_in_s) for wait in waits), None)
        asked = with_memory(options, known.profiles)
        plan = await asyncio.to_thread(plan_or_wait, nodes, asked, submission.facts, place, known)
        return probing.foreseen(submission, plan, nodes, known)

    # ---- passes ----

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_AGAIN_S if self.waits else None)
            self._wake.clear()
            await self._pass()
            passed, self._passed = self._passed, asyncio.Event()
            passed.set()

    async def _pass(self) -> None:
        """Decide on what is free now, and do it. Where nobody waits for room, running jobs may grow."""
        now = time.monotonic()
        self._charge(now)
        before, waiting = self.waits, self._waiting(time.time())
        decisions = await self._decisions(waiting, dict(self._jobs)) if waiting else []
        waits = [wait for wait in decisions if isinstance(wait, Wait) and self._is_waiting(wait.job)]
        self.waits = {wait.job: wait for wait in waits}
        for decision in decisions:
            await self._perform(decision, before)
        if not any(wait.refusal is not None and wait.refusal.details.get("busy") for wait in self.waits.values()):
            for job in [job for job in self._jobs.values() if isinstance(job, Job) and job.wanted]:
                await self._recruit(job)
        self._charge(time.monotonic())

    async def _decisions(self, waiting: list[WaitingJob], jobs: Mapping[str, AnyJob]) -> list[Decision]:
        """By the policy, beside the loop: on thousands of nodes it takes a while."""
        now = time.monotonic()
        known = self._knowledge.of_each({job.id: jobs[job.id].submission for job in waiting})
        place = planner_of(jobs, known, now)
        seen = waiting, self._running(now), self._cluster.nodes(), dict(self._usage), self._policy, place
        return await asyncio.to_thread(decide, *seen)

    async def _perform(self, decision: Decision, before: Mapping[str, Wait]) -> None:
        match decision:
            case Start(job_id, plan, rank, reason) if job_id in self._entries:
                log.info("job_starts", job=job_id, reason=reason)
                self._entries[job_id].rank = rank
                await self._start(self._jobs[job_id], plan)
            case Preempt(job_id, for_job, reason) if job_id in self._entries:
                log.info("job_preempted", job=job_id, for_job=for_job, reason=reason)
                self._entries[job_id].since = time.time()  # it must not be ahead of whom it makes room for
                await self._handle(job_id, Preempted(self._jobs[job_id].attempt, for_job, reason))
            case Wait(job_id, place, start_in_s, reason, refusal):
                if job_id not in before or before[job_id].place != place:
                    log.info("job_waits", job=job_id, place=place, start_in_s=start_in_s, reason=reason)
                if refusal is not None:
                    await self._turn_away(job_id, refusal)

    async def _start(self, job: AnyJob, plan: Plan) -> None:
        """Its workers, or first a probe of its model; before that, the links that its workers might use.

        Not at once: a burst takes processor time from a probe, which would be told for the model's own.
        """
        nodes = tuple(self._cluster.nodes())
        if isinstance(job, ScriptJob):
            return await self._handle(job.id, Planned(plan, nodes=nodes))
        event = probing.next_event(job, plan, nodes, self._knowledge.of(job.submission))
        if isinstance(event, ProbeWanted) and not self._entries[job.id].linked:
            self._entries[job.id].linked = True
            self._measuring[job.id] = asyncio.create_task(self._measure_links(job.id, nodes))
            return
        await self._handle(job.id, event)

    async def _measure_links(self, job_id: str, nodes: Sequence[Node]) -> None:
        with contextlib.suppress(PacelineError):  # what stays unknown counts as a usual network, and the plan says so
            await self._knowledge.links.ensure([node.id for node in nodes if node.free_cores > 0])
        del self._measuring[job_id]
        self.wake()

    async def _turn_away(self, job_id: str, refusal: Unplaceable) -> None:
        """Tell those that no end of a job will help: their nodes may never come back, or there never was one."""
        if not self._cluster.nodes():
            return  # a master that has just started: its nodes are about to dial
        if refusal.details.keys() & {"hardware_class", "sharded"}:
            return await self._handle(job_id, Unplaced(refusal.to_json()))
        may_fit_later = refusal.details.get("busy") and self._cluster.workers
        if not may_fit_later and too_large(self._knowledge.of(self._jobs[job_id].submission).profiles):
            await self._handle(job_id, Refused(refusal.to_json()))

    async def _recruit(self, job: Job) -> None:
        assert isinstance(job.state, Running)
        user = self._user(job.id)
        held = [hold for name, holds in self._held_by_job() if self._user(name) == user for hold in holds]
        most, _ = workers_left(self._policy.quota(user), held, job.state.plan.cores_per_worker)
        if most == 0:
            return
        found = next_worker(job, self._cluster.nodes(), time.monotonic())
        if found is not None:
            await self._handle(job.id, Recruited(job.attempt, **vars(found)))

    # ---- what the policy sees ----

    def _is_waiting(self, job_id: str) -> bool:
        waits = job_id in self._jobs and isinstance(self._jobs[job_id].state, Queued | Waiting)
        return waits and job_id not in self._measuring

    def _waiting(self, wall: float) -> list[WaitingJob]:
        return [
            WaitingJob(
                job.id,
                self._user(job.id),
                job.submission.options.priority,
                max(0.0, wall - self._entries[job.id].since),
                job.submission.options.threads,
            )
            for job in self._jobs.values()
            if self._is_waiting(job.id)
        ]

    def _running(self, now: float) -> list[RunningJob]:
        return [self._as_running(job_id, holds, now) for job_id, holds in self._held_by_job()]

    def _as_running(self, job_id: str, holds: tuple[Hold, ...], now: float) -> RunningJob:
        job = self._jobs.get(job_id)
        if job is None:  # it has ended, its workers are about to
            return RunningJob(job_id, "", 0, 0.0, holds, ran_s=0.0, leaves=True)
        state = job.state
        return RunningJob(
            job_id,
            self._user(job_id),
            job.submission.options.priority,
            self._entries[job_id].rank,
            holds,
            ran_s=now - state.since if isinstance(state, Running | Begun) else 0.0,
            left_s=seconds_left(job, now, present_plan(job)),
            leaves=_leaves(state),
        )

    def _held_by_job(self) -> list[tuple[str, tuple[Hold, ...]]]:
        """What is held by each job, ended ones with living workers among them, by job."""
        found: dict[str, list[Hold]] = defaultdict(list)
        kept = ((job_id, worker) for job_id, workers in self._cluster.held.items() for worker in workers)
        working = ((job_id, worker) for (job_id, _, _), worker in self._cluster.workers.items())
        for job_id, worker in (*working, *kept):
            hold = Hold(worker.placement.node_id, worker.threads, worker.memory, worker.placement.device)
            found[job_id].append(hold)
        return [(job_id, tuple(holds)) for job_id, holds in sorted(found.items())]

    def _user(self, job_id: str) -> str:
        entry = self._entries.get(job_id)
        return entry.user if entry else ""

    def _charge(self, now: float) -> None:
        """Charge the users for what they have held since the last time, and note what they hold now."""
        since, cores = self._charging
        self._usage = charged(self._usage, cores, now - since, self._policy.half_life_s)
        held: dict[str, float] = defaultdict(float)
        for job_id, holds in self._held_by_job():
            if job_id in self._entries:
                held[self._user(job_id)] += cores_of(holds)
        self._charging = now, held


def _leaves(state: object) -> bool:
    """Whether its places are about to be free, without anybody asking for them."""
    if isinstance(state, Recovering | ScriptEnding | ScriptSaving):
        return True
    return isinstance(state, Running) and state.preempted is not None
