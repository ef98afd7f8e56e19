"""The probe of a job's model: whether it is wanted, where it runs, and what comes of it. Pure functions.

One worker on a node of each hardware class that could take the job measures it before the first attempt (attempt 0).
A probe that is lost or late costs the job nothing but its plan's accuracy; an error of the user's code ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from paceline.errors import InvalidSpec, NotYetSupported, Unplaceable, UserCodeError
from paceline.master.commands import Command, Enqueue, Learn, Record, Send, SetTimer, StartWorkers, StopWorkers
from paceline.master.ends import end, state_record
from paceline.master.events import Late, Planned, ProbeWanted
from paceline.master.job import Job, Outcome
from paceline.master.profiles import kind_of, with_memory
from paceline.master.states import Failed, Planning, ProbePlace, Queued
from paceline.measured import Measured, rough_bytes
from paceline.messages.from_worker import FromWorker, Probed, WorkerFailed, WorkerHello
from paceline.messages.to_worker import ProbeSetup
from paceline.plan import Node, Placement, Plan
from paceline.planner.planner import plan_workers
from paceline.planner.predict import BASE_BYTES
from paceline.planner.profiles import rough_seconds
from paceline.planner.rooms import kept_back
from paceline.spec import Facts, Submission, TrainOptions

PROBE = "probe"
PROBE_BOUND_S = 60.0
PROBE_S = 2.0  # what one costs, a small model's build included
DOUBT = 0.25  # of a place's memory: what the facts put above it may not fit
ENDS_THE_JOB = tuple(kind.code for kind in (UserCodeError, InvalidSpec, NotYetSupported, Unplaceable))


# ---- whether, and where ----


def next_event(job: Job, plan: Plan, nodes: Sequence[Node], known: Measured) -> Planned | ProbeWanted:
    """What follows from a plan: the start of its workers, with how the model is known; or a probe before."""
    why, places = job.probed or "", list[ProbePlace]()
    if not job.attempt and job.probed is None:
        why, places = _places(job, plan, nodes, known)
    if places:
        return ProbeWanted(plan, tuple(_ranked(place, rank) for rank, place in enumerate(places)))
    return Planned(plan.model_copy(update={"summary": f"{plan.summary}; {why}"}) if why else plan, known, tuple(nodes))


def _places(job: Job, plan: Plan, nodes: Sequence[Node], known: Measured) -> tuple[str, list[ProbePlace]]:
    """(why the model is not probed, or "", where it is)."""
    if plan.mode == "sharded":
        return "not probed: a probe would build the whole model", []
    options = with_memory(job.submission.options, known.profiles)
    places = places_for_one(options, job.submission.facts, plan.workers[0].kind, nodes)
    if not places:
        return "not probed: no single place could hold it", []
    measured = {(p.hardware_class, p.device) for p in known.profiles if p.cells and p.probed}
    new = [place for place in places if (place.hardware_class, place.placement.kind) not in measured]
    crowd = max(Counter(worker.node_id for worker in plan.workers).values())
    why = why_not(job, places, nodes, crowd) if new else "measured before, in a job of this kind"
    return why, [] if why else new


def foreseen(submission: Submission, plan: Plan, nodes: Sequence[Node], known: Measured) -> Plan:
    """The plan of a job that nobody has submitted yet, with how its model is known."""
    event = next_event(Job(id="", submission=submission), plan, nodes, known)
    if isinstance(event, Planned):
        return event.plan
    return plan.model_copy(update={"summary": f"{plan.summary}; not probed yet: a probe on submission may change it"})


def places_for_one(options: TrainOptions, facts: Facts, kind: str, nodes: Sequence[Node]) -> list[ProbePlace]:
    """One on each hardware class with room for a worker on this kind of device."""
    found = []
    for hardware_class in sorted({node.hardware_class for node in nodes}):
        alike = [node for node in nodes if node.hardware_class == hardware_class]
        try:
            placement = plan_workers(alike, options.with_resources(workers=1), facts).workers[0]
        except Unplaceable:
            continue
        if placement.kind == kind:
            node = next(node for node in alike if node.id == placement.node_id)
            found.append(ProbePlace(placement, hardware_class, _memory(node, kind), node.speed_of(kind)))
    return found


def _ranked(place: ProbePlace, rank: int) -> ProbePlace:
    return replace(place, placement=place.placement.model_copy(update={"rank": rank}))


def why_not(job: Job, places: Sequence[ProbePlace], nodes: Sequence[Node], crowd: int) -> str:
    """Why a probe could change nothing, or costs more than it can save; "" where it is wanted.

    crowd: workers that the plan puts on one node.
    """
    options, facts = job.submission.options, job.submission.facts
    if crowd * rough_bytes(options, facts) > DOUBT * min(place.memory for place in places):
        return ""
    seconds = rough_seconds(options, facts)
    if seconds is not None and seconds < PROBE_S:
        return f"not probed: about {seconds:.2g} s of work in all, where a probe takes {PROBE_S:g} s"
    if len(places) > 1:
        return ""
    if job.wish or options.resources.workers:
        return "not probed: the number of workers was asked for, and all nodes for it are of one hardware class"
    if options.microbatches == 1:
        return "not probed: a batch has one microbatch, and all nodes for it are of one hardware class"
    return "" if _fits(nodes, options, facts, 2) else "not probed: there is one place for it"


def _fits(nodes: Sequence[Node], options: TrainOptions, facts: Facts, workers: int) -> bool:
    try:
        plan_workers(nodes, options.with_resources(workers=workers), facts)
    except Unplaceable:
        return False
    return True


def _memory(node: Node, kind: str) -> int:
    return max(0, node.free_memory - kept_back(node) - BASE_BYTES[kind])


# ---- what comes of it ----


def begin(job: Job, plan: Plan, places: Sequence[ProbePlace]) -> Outcome:
    """Start the probes, and keep the plan's other places free until they have ended."""
    pending = {place.placement.rank: place for place in places}
    job = replace(job, state=Planning(plan, _others(plan, places), pending))
    return job, [
        state_record(job),
        StartWorkers(job.attempt, tuple(place.placement for place in places)),
        SetTimer(PROBE_BOUND_S, Late(job.attempt, PROBE)),
    ]


def _others(plan: Plan, places: Sequence[ProbePlace]) -> tuple[Placement, ...]:
    """The plan's placements without one for each probe on their node."""
    taken = [place.placement.node_id for place in places]
    held = []
    for placement in plan.workers:
        if placement.node_id in taken:
            taken.remove(placement.node_id)
        else:
            held.append(placement)
    return tuple(held)


def answered(job: Job, state: Planning, rank: int, message: FromWorker, now: float) -> Outcome:
    """A probe's message. What its node is to blame for, such as a full disk, costs the probe and not the job."""
    place = state.pending[rank]
    match message:
        case WorkerHello():
            setup = ProbeSetup(
                submission=job.submission,
                device=place.placement.device,
                hardware_class=place.hardware_class,
                memory=place.memory,
            )
            return job, [Send(job.attempt, rank, setup)]
        case WorkerFailed(error=error) if error["code"] in ENDS_THE_JOB:
            return end(job, Failed(error), now)
        case WorkerFailed(error=error):
            return missed(job, state, (rank,), f"failed: {error['fact']}")
        case Probed():
            return _measured(job, state, rank, message)
    return job, []


def _measured(job: Job, state: Planning, rank: int, probed: Probed) -> Outcome:
    place = state.pending[rank]
    known = {"hardware_class": place.hardware_class, "device": place.placement.kind, "flop_per_s": place.flop_per_s}
    profile = probed.profile.model_copy(update=known)  # of where it ran, whatever the worker says
    node = place.placement.node_name
    how = f"probed on {node} in {probed.seconds:.1f} s" if profile.cells else f"probed on {node}, where it does not fit"
    job = replace(job, state=_without(state, (rank,), how))
    row = {"node": node, "seconds": probed.seconds, "memory": place.memory, "fits": bool(profile.cells)}
    return job, [
        Record("probed", {**row, **profile.model_dump(mode="json")}),
        Learn(kind_of(job.submission), profile),
        StopWorkers(job.attempt, (rank,)),
    ]


def missed(job: Job, state: Planning, ranks: tuple[int, ...], how: str) -> Outcome:
    """These probes give nothing: the plan is made by estimates, and says so."""
    if not ranks:
        return job, []
    names = ", ".join(state.pending[rank].placement.node_name for rank in ranks)
    note = f"not probed: the probe on {names} {how}"
    job = replace(job, state=_without(state, ranks, note))
    return job, [Record("probe_missed", {"reason": note}), StopWorkers(job.attempt, ranks)]


def _without(state: Planning, ranks: tuple[int, ...], note: str) -> Planning:
    pending = {rank: place for rank, place in state.pending.items() if rank not in ranks}
    return replace(state, pending=pending, notes=(*state.notes, note))


def ended(job: Job, state: Planning) -> Outcome:
    """No probe is left: back to the queue, to be planned by what is known now."""
    job = replace(job, state=Queued(), probed="; ".join(state.notes))
    commands: list[Command] = [state_record(job), Enqueue()]
    return job, commands
