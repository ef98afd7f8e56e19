"""What was learned of kinds of jobs: measured by probes, refined by training, kept for the next job of the kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from statistics import median

from paceline.master.commands import Learn
from paceline.master.job import Job
from paceline.master.states import Running
from paceline.measured import CellTime, Measured, Profile
from paceline.plan import Node, Plan
from paceline.planner.planner import plan_workers
from paceline.planner.predict import BASE_BYTES
from paceline.planner.profiles import Workload, estimated
from paceline.spec import Keep, Submission, TrainOptions

PROBE_STEPS = 20  # of real training that count as much as the probe
MEMORY_OF_STEPS = 1000  # older ones fade: a node's speed changes


def kind_of(submission: Submission) -> str:
    """The same for jobs whose steps cost the same: weights, data, seeds, learning rates and stop conditions aside.

    Where the client could not see the model (a builder), the program and the data's description are taken by their
    bytes.
    """
    options, facts = submission.options, submission.facts
    program = facts.fingerprint or f"{submission.program.pickle}/{submission.train_data.pickle}"
    costs = (
        options.batch_size,
        options.microbatches,
        options.precision,
        options.threads,
        options.reproducible,
        options.clip_grad_norm is not None,
        Keep.parse(options.keep).metric is not None,
        submission.val_data is not None,
    )
    return hashlib.sha256(repr((program, costs)).encode()).hexdigest()


def learn(profile: Profile, cell_s: float, rest_s: float, steps: int) -> Profile:
    """The profile after `steps` more steps of training on such a node.

    cell_s: seconds of a microbatch there. rest_s: of a step for all but microbatches and exchanges. The other sizes
    change in proportion: what makes one slower makes all slower.
    """
    weight = steps / (steps + min(PROBE_STEPS + profile.steps, MEMORY_OF_STEPS))
    full = max(profile.cells[-1].seconds, 1e-9)
    ratio = (full + weight * (cell_s - full)) / full
    cells = tuple(CellTime(samples=c.samples, seconds=c.seconds * ratio) for c in profile.cells)
    update_s = profile.update_s + weight * (rest_s - profile.update_s)
    return profile.model_copy(update={"cells": cells, "update_s": update_s, "steps": profile.steps + steps})


def taught(job: Job, state: Running) -> list[Learn]:
    """What a job's training tells of its kind: the profile that it was planned by, refined; or its times, without one.

    A sharded job's microbatches hold exchanges, and so tell nothing.
    """
    place = state.plan.hardware_class, state.plan.workers[0].kind
    times = _times(state, place[1])
    if state.plan.mode == "sharded" or times is None:
        return []
    known = next((p for p in job.known.profiles if p.cells and (p.hardware_class, p.device) == place), None)
    if known is None:
        profile = _of_training(job.submission, *place, *times, job.training.step)
    else:
        profile = learn(known, *times, job.training.step)
    return [Learn(kind_of(job.submission), profile)]


def _times(state: Running, kind: str) -> tuple[float, float] | None:
    """(seconds of a microbatch, of a step's rest): the median of the members on this kind of device."""
    members = [w for w in (state.workers[rank] for rank in state.members) if w.placement.kind == kind]
    found = [(worker.cell_s, worker.rest_s) for worker in members if worker.cell_s and worker.rest_s is not None]
    return (median(cell for cell, _ in found), median(rest for _, rest in found)) if found else None


def _of_training(
    submission: Submission, hardware_class: str, kind: str, cell_s: float, rest_s: float, steps: int
) -> Profile:
    """Of a job that no probe has seen."""
    work = Workload(submission.options, submission.facts)
    sizes, _ = estimated(work, hardware_class, kind, None)
    cells = (CellTime(samples=work.cell_samples, seconds=cell_s),)
    seen = {"cells": cells, "update_s": rest_s, "probed": False, "steps": steps}
    return sizes.model_copy(update=seen)


def with_memory(options: TrainOptions, profiles: Iterable[Profile]) -> TrainOptions:
    """The options, with the memory that a probe found lacking where it did not fit: of the whole model."""
    found = list(profiles)
    needs = too_large(found)
    if not needs or options.sync == "sharded":
        return options
    memory = max(needs + max(BASE_BYTES[profile.device] for profile in found), options.resources.memory or 0)
    return options.with_resources(memory=memory)


def too_large(profiles: Iterable[Profile]) -> int:
    """Bytes that the job needs at least, where some place was too small for it; else 0."""
    found = list(profiles)
    fits = {(p.hardware_class, p.device) for p in found if p.cells}
    return 0 if fits else max((p.worker_bytes for p in found), default=0)


def plan_by(
    known: Measured,
    nodes: Sequence[Node],
    submission: Submission,
    wish: int | None = None,
    hardware_class: str | None = None,
) -> Plan:
    """The planner's decision by what is known. Raises Unplaceable."""
    options = with_memory(submission.options, known.profiles)
    return plan_workers(nodes, options, submission.facts, wish, hardware_class, known=known)
