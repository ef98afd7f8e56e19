"""The gang start of an attempt: all workers build, what they built is compared, and training begins. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from paceline.errors import DataMismatch, DiskFull
from paceline.master import members
from paceline.master.commands import Command, Record, Send, SetTimer, StartWorkers
from paceline.master.committed import Checkpoint
from paceline.master.ends import end, fall_back, recover, state_record
from paceline.master.events import Late, Planned, Tick
from paceline.master.hangs import TICK_S
from paceline.master.job import Job, Live, Outcome
from paceline.master.orders import advance
from paceline.master.shown import Shown
from paceline.master.states import Failed, Running, Starting, Worker
from paceline.messages.from_worker import FromWorker, Ready, Unloadable, WorkerFailed, WorkerHello
from paceline.messages.to_worker import Group, Setup
from paceline.plan import Placement, Plan

SETUP_BOUND_S = 900.0
SETUP = "setup"

Building = Mapping[int, tuple[Placement, str]]


def start(job: Job, planned: Planned) -> Outcome:
    """The next attempt, as it was planned."""
    plan = planned.plan
    building = {placement.rank: (placement, "") for placement in plan.workers}
    job = replace(
        job,
        attempt=job.attempt + 1,
        fruitless=job.fruitless + 1,
        hardware_class=job.hardware_class or plan.hardware_class,
        nodes={node.id: node for node in planned.nodes},
        known=planned.known,
        state=Starting(plan, building),
    )
    return job, gang_start(job, plan, SETUP_BOUND_S)


def gang_start(job: Live, plan: Plan, bound_s: float) -> list[Command]:
    """What begins an attempt of a job of any kind: all of its workers at once, each to be ready within the bound."""
    return [
        Record("planned", {"attempt": job.attempt, "summary": plan.summary}),
        state_record(job),
        StartWorkers(job.attempt, plan.workers),
        SetTimer(bound_s, Late(job.attempt, SETUP)),
    ]


def build(job: Job, state: Starting, rank: int, message: FromWorker, now: float) -> Outcome:
    """A message of a worker that is not ready yet."""
    match message:
        case WorkerHello():
            state = replace(state, building=greeted(state.building, rank, message))
            copies = job.copies.step if job.copies else None
            setup = setup_of(job, state.plan, state.building[rank][0], job.checkpoint, copies)
            return replace(job, state=state), [Send(job.attempt, rank, setup)]
        case Ready():
            building, worker = built(state.building, rank, message, job.training.step, now)
            state = replace(
                state,
                building=building,
                workers={**state.workers, rank: worker},
                fingerprints={**state.fingerprints, rank: message.fingerprint},
            )
            job = replace(job, state=state)
            return (job, []) if building else _begin(job, state, message, now)
        case Unloadable(step=at, reason=reason) if job.checkpoint is not None and job.checkpoint.ref.step == at:
            return fall_back(job, reason, now)
        case WorkerFailed(error={"code": DiskFull.code, "fact": fact}):  # of that node: others may have room
            return recover(job, f"{members.named(state.building[rank][0])}: {fact}", now)
        case WorkerFailed(error=error):
            return end(job, Failed(error), now)
    return job, []


def greeted(building: Building, rank: int, hello: WorkerHello) -> Building:
    """The same, with the worker's address."""
    return {**building, rank: (building[rank][0], hello.address)}


def built(building: Building, rank: int, ready: Ready, at: int, now: float) -> tuple[Building, Worker]:
    """The others that are still building, and the worker that is ready, with the state after `at` steps."""
    placement, address = building[rank]
    worker = Worker(placement, address, ready.store_port, step=at, moved_at=now, beat_at=now)
    return {r: started for r, started in building.items() if r != rank}, worker


def setup_of(job: Job, plan: Plan, placement: Placement, load: Checkpoint | None, copies: int | None = None) -> Setup:
    """What a worker is told to build."""
    return Setup(
        submission=job.submission,
        rank=placement.rank,
        device=placement.device,
        checkpoint=load.ref if load and copies is None else None,
        copies=copies,
        sharding=plan.sharding,
    )


def drain(job: Job, state: Starting, node_id: str) -> Outcome:
    """The node's workers are released once training has begun and others can go on."""
    there = [placement.rank for placement in state.plan.workers if placement.node_id == node_id]
    if not there or node_id in state.draining:
        return job, []
    job = replace(job, state=replace(state, draining=state.draining | {node_id}))
    return job, [Record("draining", {"node": node_id, "ranks": there})]


def _begin(job: Job, state: Starting, ready: Ready, now: float) -> Outcome:
    """Everyone is ready: compare what they built, and train."""
    options = job.submission.options
    names = {members.named(worker.placement): state.fingerprints[rank] for rank, worker in state.workers.items()}
    if len(set(names.values())) > 1:
        return end(job, Failed(mismatch(names).to_json()), now)
    ranks = tuple(sorted(state.workers))
    running = Running(
        plan=state.plan,
        grid=replace(options.grid(ready.train_samples), microbatches=state.plan.microbatches),
        parameters=ready.parameters,
        fingerprint=ready.fingerprint,
        members=ranks,
        workers=state.workers,
        group=Group(key="", host="", port=0, members=(), shares=()),
        since=now,
        checkpointed_at=now,
        looked_at=now,
        target=max(len(ranks), state.plan.most_workers),
        next_rank=len(ranks),
        shown=Shown(enough=len(ranks)),
        leaving=frozenset(r for r, worker in state.workers.items() if worker.placement.node_id in state.draining),
    )
    running = members.form(running, job.id, job.attempt, ranks)
    if job.wish is not None and state.plan.elastic:  # only members are there: nobody has to be stopped
        running, _ = members.resize(running, job.wish)
    training = job.training.model_copy(update={"train_samples": ready.train_samples})
    job = replace(job, training=training, state=running)
    announcement = state_record(job)
    job, commands = advance(job, running, now)
    return job, [announcement, *commands, SetTimer(TICK_S, Tick(job.attempt))]


def mismatch(fingerprints: Mapping[str, str]) -> DataMismatch:
    """fingerprints: of the data that each worker built, by its name."""
    found = "; ".join(f"{name} has {fingerprint}" for name, fingerprint in sorted(fingerprints.items()))
    return DataMismatch(
        f"the workers built different data: {found}.",
        "Make the builder return the same samples in the same order on every node (sort file lists, fix versions).",
        fingerprints=dict(fingerprints),
    )
