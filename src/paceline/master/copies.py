"""When a sharded job's shards are copied into nodes' memory, where to, and what then counts. Pure functions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from paceline.master.commands import Record
from paceline.master.committed import Copies
from paceline.master.job import Job, Outcome
from paceline.master.states import Running
from paceline.messages.from_worker import Copied
from paceline.messages.to_worker import CopyOrder
from paceline.planner.copies import GENERATIONS, neighbours

COPY_EVERY_S = 1.0
SHARE = 0.02  # of the time may go into copies, and into checkpoints, also beside training: long ones are as seldom


def due(job: Job, state: Running, now: float) -> bool:
    """Never while a checkpoint or other copies are under way."""
    sharding, at = state.plan.sharding, job.training.step
    if sharding is None or not sharding.copy_bytes or state.copies_failed:
        return False
    if state.pending is not None or state.copying is not None or at <= job.restored.step:
        return False
    return now - state.copied_at >= max(COPY_EVERY_S, state.copy_s / SHARE)


def order(job: Job, state: Running) -> CopyOrder:
    nodes = [state.workers[rank].placement.node_id for rank in state.members]
    return CopyOrder(to=neighbours(nodes), kept=job.copies.step if job.copies else None)


def copied(job: Job, state: Running, rank: int, message: Copied) -> Outcome:
    """Copies count once every member has said so; then the ones before them count no more."""
    training = state.copying
    assert training is not None
    if message.error is not None:
        job = replace(job, state=replace(state, copying=None, copies_failed=True))
        return job, [Record("warning", message.error)]
    copied, seconds = state.copied | {rank}, max(state.copy_s, message.seconds)
    state = replace(state, copied=copied, copy_s=seconds)
    if not copied >= set(state.members):
        return replace(job, state=state), []
    workers = Counter(state.workers[rank].placement.node_id for rank in state.members)
    each = state.plan.sharding.copy_bytes // GENERATIONS if state.plan.sharding else 0
    copies = Copies(training.step, training, {node: count * each for node, count in workers.items()})
    return replace(job, copies=copies, state=replace(state, copying=None)), []
