"""Performs what the machine decides: one consumer of events, so that each job's events are handled in their order."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import structlog

from paceline.errors import Conflict, JobFailed, PacelineError, Unplaceable
from paceline.master import lives, retention
from paceline.master.artifacts import Blobs
from paceline.master.cluster import Cluster, SendMessage, WorkerKey
from paceline.master.commands import (
    Command,
    Commit,
    Discard,
    Enqueue,
    Forget,
    Learn,
    Quarantine,
    Record,
    RollBack,
    Send,
    SetTimer,
    StartWorkers,
    StopWorkers,
)
from paceline.master.events import Answer, AttemptEnded, Event, Lost, NodeDraining
from paceline.master.feed import Feed, FeedEvent
from paceline.master.job import Job
from paceline.master.knowledge import Knowledge
from paceline.master.links import Links
from paceline.master.lives import AnyJob, AnySubmission
from paceline.master.logs import Logs
from paceline.master.models import JobRow
from paceline.master.placing import check_quota
from paceline.master.scheduler import Scheduler
from paceline.master.states import TERMINAL, Planning
from paceline.master.store import Store
from paceline.measured import Measured
from paceline.messages.from_agent import AgentHello, LogLines
from paceline.messages.from_worker import FromWorker, Progressed, Reported, Trained
from paceline.plan import Node, Plan
from paceline.planner.queue import Policy
from paceline.planner.sharded import decided
from paceline.spec import Submission

RETRY_STORE_S = 2.0
DISCARD_EVERY_S = 10.0
ENDED_WITHIN_S = 60.0

log = structlog.get_logger("controller")


class Controller:
    def __init__(self, store: Store, cluster: Cluster, feed: Feed, blobs: Blobs, logs: Logs, policy: Policy) -> None:
        self._store, self._cluster, self._feed, self._blobs, self._logs = store, cluster, feed, blobs, logs
        self.links = Links(cluster)
        self._policy = policy
        self._events: asyncio.Queue[tuple[str, Event]] = asyncio.Queue()
        self._jobs: dict[str, AnyJob] = {}  # the unfinished ones
        self._handling = asyncio.Lock()  # the scheduler's decisions are events like any other: one at a time
        self._knowledge = Knowledge(store, self.links)
        self.scheduler = Scheduler(self._jobs, cluster, policy, self._knowledge, self._handle)
        self._dropped: set[str] = set()  # blobs of checkpoints that their jobs need no more

    async def resume(self) -> None:
        """Take up what a former master left; call before any job can be submitted, or it would be taken up twice."""
        self.scheduler.recall(await asyncio.to_thread(self._store.jobs), time.time())
        for row in await asyncio.to_thread(self._store.unfinished):
            await self._resume(row)

    async def run(self) -> None:
        """Serve until cancelled. Raises what ends any of its parts: none can go on without the others."""
        async with asyncio.TaskGroup() as parts:
            for part in (self._serve, self.scheduler.run, self._discard_forever):
                parts.create_task(part())

    async def _serve(self) -> None:
        while True:
            job_id, event = await self._events.get()
            await self._handle(job_id, event)

    async def _resume(self, row: JobRow) -> None:
        job, commands = lives.resumed(row)
        self._adopt(job, row)
        await self._apply(job, commands)

    def _adopt(self, job: AnyJob, row: JobRow) -> None:
        self._jobs[job.id] = job
        self.scheduler.adopt(row)

    # ---- from outside ----

    async def submit(self, submission: AnySubmission, user: str) -> JobRow:
        """Store a job, then plan it.

        Raises Unplaceable where no cluster like this one could ever run it, or the user's quota never lets it, and
        Conflict where the request id is another user's.
        """
        known = await asyncio.to_thread(self._store.job_of_request, submission.request_id)
        if known is not None:
            return _theirs(known, user)
        check_quota(submission, user, self._policy.quota(user))
        seen = self._cluster.nodes(), submission, self._knowledge.of(submission)
        submission = await asyncio.to_thread(_placeable, *seen)
        job_id = f"job-{uuid.uuid4().hex[:10]}"
        row, new = await asyncio.to_thread(self._store.add_job, job_id, submission, time.time(), user)
        if new:
            self._adopt(lives.new(row.id, submission), row)
            self.scheduler.wake()
        return _theirs(row, user)

    def post(self, job_id: str, event: Event) -> None:
        self._events.put_nowait((job_id, event))

    # ---- from agents and workers ----

    def worker_says(self, key: WorkerKey, message: FromWorker) -> None:
        job_id, attempt, rank = key
        worker = self._cluster.workers.get(key)
        if worker is not None and isinstance(message, Progressed | Trained | Reported):
            worker.last_step = worker.last_step if message.step is None else message.step
        if isinstance(message, Progressed):
            self._feed.publish(job_id, FeedEvent(None, time.time(), "live", message.model_dump(exclude={"kind"})))
        else:
            self.post(job_id, Answer(attempt, rank, message))

    def worker_ended(self, key: WorkerKey, reason: str) -> None:
        job_id, attempt, rank = key
        self._cluster.workers.pop(key, None)
        self.post(job_id, Lost(attempt, rank, reason))
        if not self._cluster.of_attempt(job_id, attempt):
            self.post(job_id, AttemptEnded(attempt))
        self.scheduler.wake()

    def node_joined(self, hello: AgentHello, send: SendMessage) -> str:
        """Take an agent in; return its node's id. Where it is back before its old link is seen to end, that is over."""
        former = self._cluster.former(hello)
        if former is not None:
            log.info("node_came_back", node=former)
            self.node_left(former)
        node_id = self._cluster.join(hello, send)
        self.scheduler.wake()
        return node_id

    def node_left(self, node_id: str) -> None:
        for key in self._cluster.leave(node_id):
            self.worker_ended(key, f"node {node_id} is gone")
        self.scheduler.wake()

    def drain(self, node_id: str) -> None:
        """Give a node back: its workers leave at the next round, as soon as others can go on. Raises NotFound."""
        self._cluster.drain(node_id)
        for job_id in self._jobs:
            self.post(job_id, NodeDraining(node_id))

    def log_lines(self, lines: LogLines) -> None:
        """Keep what a worker printed. Where the disk has no room, jobs go on without."""
        try:
            self._logs.append(lines)
        except OSError as error:
            log.error("log_lines_lost", job=lines.job_id, rank=lines.rank, error=str(error))

    # ---- inside ----

    async def _handle(self, job_id: str, event: Event) -> None:
        async with self._handling:
            job = self._jobs.get(job_id)
            if job is None:
                return
            after, commands = self._step(job, event)
            if after is not job or commands:
                await self._apply(after, commands)

    def _step(self, job: AnyJob, event: Event) -> tuple[AnyJob, list[Command]]:
        """The machine's step. A bug in it costs this job, not all of them."""
        try:
            return lives.step(job, event, time.monotonic())
        except Exception as error:
            log.error("machine_failed", job=job.id, event=repr(event)[:500], exc_info=error)
            told = JobFailed(f"the master met a bug in handling this job: {error!r}.", "Please report it with the log.")
            return lives.failed(job, told, time.monotonic())

    async def _apply(self, job: AnyJob, commands: list[Command]) -> None:
        """Make the change durable, then act on it: what was announced survives a crash."""
        self._jobs[job.id] = job
        self._hold(job)  # with the state: the scheduler may look while that is stored
        stored = [c for c in commands if isinstance(c, Record | Commit | RollBack | Learn)]
        if stored:
            await self._save(job, lives.present_plan(job), stored)
        for command in commands:
            try:
                self._perform(job, command)
            except Exception as error:
                log.error("command_failed", job=job.id, command=repr(command)[:500], exc_info=error)
        if isinstance(job.state, TERMINAL):
            log.info("job_ended", job=job.id, state=job.state_name)
            del self._jobs[job.id]
            self.scheduler.forget(job.id)
            if not isinstance(job, Job) or job.submission.options.sync == "sharded":  # others leave nothing behind
                self._cluster.forget(job.id)

    def _hold(self, job: AnyJob) -> None:
        """While a job's model is measured, the places that it will likely get are nobody else's."""
        if isinstance(job.state, Planning):
            plan = job.state.plan
            self._cluster.hold(job.id, job.state.held, plan.cores_per_worker, plan.memory_per_worker)
        else:
            self._cluster.hold(job.id, (), 0, 0)

    async def _save(self, job: AnyJob, plan: Plan | None, stored: list[Any]) -> None:
        """While the store can't be written, as with a full disk, jobs stand still rather than go on unrecorded."""
        while True:
            try:
                rows = await asyncio.to_thread(self._store.save, job, plan, stored, time.time())
            except PacelineError as error:
                log.error("store_unavailable", job=job.id, error=str(error), retry_s=RETRY_STORE_S)
                await asyncio.sleep(RETRY_STORE_S)
                continue
            for row in rows:
                self._feed.publish(job.id, FeedEvent(row.seq, row.at, row.kind, row.data))
            return

    def _perform(self, job: AnyJob, command: Command) -> None:
        match command:
            case Enqueue():
                self.scheduler.wake()
            case StartWorkers(attempt, placements):
                for key in self._cluster.start(job.id, attempt, placements, *lives.held_by_worker(job)):
                    self.worker_ended(key, "its node left before it was started")
            case Send(attempt, rank, message):
                worker = self._cluster.workers.get((job.id, attempt, rank))
                if worker is not None and worker.send is not None:
                    worker.send(message)
            case StopWorkers(attempt, ranks):
                self._cluster.stop(job.id, attempt, ranks)
                asyncio.get_running_loop().call_later(ENDED_WITHIN_S, self._give_up, job.id, attempt, ranks)
                if not self._cluster.of_attempt(job.id, attempt):
                    self.post(job.id, AttemptEnded(attempt))
            case Discard(blobs, damaged):
                if damaged:
                    self._blobs.remove(blobs)
                else:
                    self._dropped.update(blobs)
            case Forget():
                self._cluster.forget(job.id)
            case Learn(kind, profile):
                self._knowledge.note(kind, profile.model_copy(update={"at": time.time()}))
            case Quarantine(node_id, reason):
                log.error("node_quarantined", node=node_id, reason=reason)
                self._cluster.quarantine(node_id, reason)
                for other in self._jobs:
                    self.post(other, NodeDraining(node_id))
            case SetTimer(seconds, event):
                asyncio.get_running_loop().call_later(seconds, self.post, job.id, event)

    def _give_up(self, job_id: str, attempt: int, ranks: tuple[int, ...] | None) -> None:
        """Nodes that do not end workers when they are told to count as lost: their channels, and so all there, end."""
        for rank, worker in self._cluster.of_attempt(job_id, attempt).items():
            if ranks is None or rank in ranks:
                node = worker.placement.node_id
                log.error("worker_not_ended", job=job_id, rank=rank, node=node, within_s=ENDED_WITHIN_S)
                self.node_left(node)

    async def _discard_forever(self) -> None:
        """Delete dropped checkpoints soon, lest they fill the disk. Those that a crash forgets, the sweep finds."""
        while True:
            await asyncio.sleep(DISCARD_EVERY_S)
            names, self._dropped = self._dropped, set()
            if names:
                await asyncio.to_thread(self._discard, names)

    def _discard(self, names: set[str]) -> None:
        now = time.time()
        try:
            rows = self._store.jobs(ended_after=now - retention.LONGEST_S)
            self._blobs.remove(names - retention.blobs_in_use(rows, now))  # twins share blobs
        except (OSError, PacelineError) as error:
            log.error("discard_failed", blobs=len(names), error=str(error))


def _placeable(nodes: Sequence[Node], submission: AnySubmission, known: Measured) -> AnySubmission:
    """The submission, with what "auto" in it means here. Takes a while on many nodes: call it beside the loop.

    Raises Unplaceable unless the job could run here within its limits, now or once running jobs have ended.
    """
    if isinstance(submission, Submission):
        submission = decided(nodes, submission, known)
    try:
        lives.first_plan(nodes, submission, known)
    except Unplaceable as refusal:
        if not refusal.details.get("busy"):
            raise
    return submission


def _theirs(known: JobRow, user: str) -> JobRow:
    """The job that a request id stands for. Raises Conflict where it is another user's."""
    if known.user != user:
        raise Conflict(
            f"the request id {known.request_id[:100]!r} stands for {known.id}, a job of {known.user}.",
            "Choose another request_id, or leave it out.",
        )
    return known
