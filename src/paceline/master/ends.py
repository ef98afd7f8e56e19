"""How an attempt or a job ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from paceline.errors import JobFailed
from paceline.master.commands import Command, Discard, Enqueue, Forget, Record, RollBack, StopWorkers
from paceline.master.delivery import Delivery
from paceline.master.job import Job, Live, Outcome
from paceline.master.profiles import taught
from paceline.master.states import Cancelled, Failed, Planning, Recovering, Running, Succeeded, Waiting
from paceline.messages.from_worker import Saved

MAX_FRUITLESS_ATTEMPTS = 3


def state_record(job: Live) -> Record:
    """The event row that tells of the job's new state."""
    data: dict[str, Any] = {"state": job.state_name, "attempt": job.attempt}
    match job.state:
        case Failed(error=error):
            data["error"] = error
        case Recovering(reason) | Waiting(reason):
            data["reason"] = reason
        case Succeeded(delivery):
            data["stop_reason"] = delivery.stop_reason
    return Record("state", data)


def deliver(job: Job, state: Running, saved: Saved, now: float) -> Outcome:
    """The job is over: its model is stored for the client."""
    options = job.submission.options
    seconds = job.trained_s(now)
    reason = " and ".join(map(str, state.stopping)) + f" at step {job.training.step}"
    because = None if state.reproducible else f"wall time ended the job ({reason}, {seconds:.1f} s)"
    if state.plan.mode == "sharded":
        because = because or "a sharded model equals an exactly trained one within float error"
    delivery = Delivery(
        blob=saved.blob,
        files=saved.files,
        nbytes=saved.nbytes,
        digest=saved.digest,
        step=job.training.best_step or saved.step,
        stop_reason=reason,
        reproducible=because is None and options.reproducible,
        irreproducible_because=because or (None if options.reproducible else "reproducible=False"),
        hardware_class=state.plan.hardware_class,
    )
    learned = taught(job, state)
    job = replace(job, elapsed_s=seconds, state=Succeeded(delivery))
    return job, [state_record(job), StopWorkers(job.attempt), *discard_checkpoints(job), *learned]


def end(job: Job, state: Failed | Cancelled, now: float) -> Outcome:
    """The job is over without a model; no worker of it stays."""
    stops: list[Command] = [StopWorkers(job.attempt)] if job.attempt or isinstance(job.state, Planning) else []
    job = replace(job, elapsed_s=job.trained_s(now), state=state)
    return job, [state_record(job), *stops, *discard_checkpoints(job)]


def discard_checkpoints(job: Job) -> list[Command]:
    """The job has ended: it starts from none of them again."""
    blobs = tuple(blob for checkpoint in job.checkpoints for blob in checkpoint.ref.blobs)
    return [Discard(blobs)] if blobs else []


def recover(job: Job, reason: str, now: float) -> Outcome:
    """Give the attempt up and go back to the checkpoint. Too many in a row that got no further, and the job fails."""
    if job.fruitless >= MAX_FRUITLESS_ATTEMPTS:
        error = JobFailed(
            f"{job.fruitless} attempts in a row got no further than step {job.furthest}; the last: {reason}.",
            "See `paceline logs` for what the workers printed; a worker that the system killed may lack memory.",
        )
        return end(job, Failed(error.to_json()), now)
    job = replace(job, elapsed_s=job.trained_s(now), state=Recovering(reason))
    return job, [Record("attempt_lost", {"reason": reason}), state_record(job), StopWorkers(job.attempt)]


def park(job: Job, reason: str, now: float) -> Outcome:
    """Leave the nodes to another job: what is committed is in the checkpoint, and the next attempt goes on from it."""
    job = replace(job, elapsed_s=job.trained_s(now), state=Recovering(reason), fruitless=max(0, job.fruitless - 1))
    forget: list[Command] = [Forget()] if job.submission.options.sync == "sharded" else []  # others get that memory
    return replace(job, copies=None), [state_record(job), StopWorkers(job.attempt), *forget]


def fall_back(job: Job, reason: str, now: float) -> Outcome:
    """The newest checkpoint can't be loaded: go back to the one before it, or to the first step."""
    lost, *older = job.checkpoints
    again = older[0].ref.step if older else 0
    # no fruitless attempt of the workers: what bounds it is the number of checkpoints
    job = replace(job, checkpoints=tuple(older), fruitless=job.fruitless - 1)
    job, commands = recover(job, f"the checkpoint of step {lost.ref.step} can't be loaded: {reason}", now)
    record = Record("checkpoint_lost", {"step": lost.ref.step, "reason": reason, "resumes_from": again})
    # its name must be free: training writes the very same bytes again
    return job, [record, Discard(lost.ref.blobs, damaged=True), *commands]


def forgo_copies(job: Job, reason: str, now: float) -> Outcome:
    """Too many nodes are gone at once for the copies in the others' memory: go back to the checkpoint."""
    assert job.copies is not None
    step, again = job.copies.step, job.checkpoint.ref.step if job.checkpoint else 0
    job = replace(job, copies=None, fruitless=job.fruitless - 1)  # the workers did what they could
    job, commands = recover(job, f"the copies of step {step} can't be loaded: {reason}", now)
    return job, [Record("copies_lost", {"step": step, "reason": reason, "resumes_from": again}), *commands]


def rejoin_queue(job: Job, reason: str) -> Outcome:
    """Back to the last checkpoint or the last copies, and to the queue."""
    training = job.restored
    told: list[Command] = []
    if job.copies is not None:
        told = [Record("resumes", {"step": training.step, "from": "copies", "nodes": sorted(job.copies.nodes)})]
    undone: list[Command] = [RollBack(training.step)] if training.step < job.training.step else []
    job = replace(job, training=training, state=Waiting(reason))
    return job, [*undone, *told, state_record(job), Enqueue()]
