"""Which nodes train a job: a pure function of plain data, with a reason for every node taken or not.

Rooms (`rooms.py`) say what fits where, a search (`search.py`) grows sets of workers from them, predictions
(`predict.py`) say what each would take, and the quickest within the request's limits is taken (`choose.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from paceline.errors import Unplaceable
from paceline.measured import Measured
from paceline.plan import ChosenNode, Node, NodePart, Placement, Plan, Waiting
from paceline.planner import refusal
from paceline.planner.alternatives import alternatives, faster
from paceline.planner.choose import Choice
from paceline.planner.growth import most_workers
from paceline.planner.predict import crew_of, sent_by_each
from paceline.planner.profiles import Workload
from paceline.planner.reasons import node_reasons
from paceline.planner.refusal import asked_for_too_many
from paceline.planner.request import Request
from paceline.planner.rooms import Room, when_idle
from paceline.planner.search import Candidate
from paceline.planner.sharded import plan_sharded
from paceline.planner.speeds import with_speeds
from paceline.planner.summary import summary
from paceline.spec import Facts, TrainOptions


def plan_workers(
    nodes: Sequence[Node],
    options: TrainOptions,
    facts: Facts,
    wish: int | None = None,
    hardware_class: str | None = None,
    known: Measured = Measured(),  # noqa: B008 - it is frozen
) -> Plan:
    """Choose the nodes for a job, all of its workers at once.

    wish: workers that the user asked for since; as many of them as fit now, whatever `options` say.
    hardware_class: the one that the job began on, part of its result; a reproducible job goes on on no other.
    known: measurements of this model and of links; where there are none, times are estimated from `facts`.
    Raises Unplaceable, with `details["busy"]` true where the job fits once running ones have ended; else, where there
    are some, with `details["counter"]`, the fields of a spec that would fit; and with `details["hardware_class"]` where
    no node of that class is left.
    """
    nodes = with_speeds(nodes)
    if options.sync == "sharded":
        return plan_sharded(nodes, options, facts, wish, known)
    begun_on = hardware_class if options.reproducible else None
    request = Request(Workload(options, facts, known), nodes, wish, begun_on)
    if wish is None and (options.resources.workers or 1) > options.microbatches:
        raise asked_for_too_many(request.work, _on_idle_nodes(request))
    rooms = request.rooms()
    choice = request.choose(rooms)
    if choice.best is None:
        raise _refused(request, rooms, choice)
    return _plan(request, rooms, choice, choice.best)


def plan_or_wait(
    nodes: Sequence[Node],
    options: TrainOptions,
    facts: Facts,
    queue: Waiting | None,
    known: Measured = Measured(),  # noqa: B008 - it is frozen
) -> Plan:
    """The plan of a job that would be submitted now; where it would have to wait, that of the idle cluster.

    queue: the place that it would get, and its expected start; None where it would start at once. Raises Unplaceable
    where it would be refused.
    """
    if queue is None:
        return plan_workers(nodes, options, facts, known=known)
    return plan_workers(when_idle(nodes), options, facts, known=known).model_copy(update={"waiting": queue})


def _refused(request: Request, rooms: Sequence[Room], choice: Choice) -> Unplaceable:
    """Why the job can't start now: it is to wait, or it is refused with the nearest thing that would fit."""
    work, begun_on = request.work, request.begun_on
    own = [room for room in rooms if begun_on in (None, room.node.hardware_class)]
    if begun_on is not None and all(room.excluded for room in own):
        return refusal.class_gone(rooms, begun_on)
    later = request.choose([room.when_idle() for room in rooms])
    needs = refusal.needs_of(
        work, request.kind, max((r.memory for r in own), default=0), request.numbers.exactly or 1, begun_on
    )
    fact = refusal.over_limits(work, later) if later.candidates else refusal.too_little(work, own, needs)
    if later.best is not None:
        fact = refusal.over_limits(work, choice) if choice.candidates else refusal.too_little(work, own, needs)
        return Unplaceable(fact, "It waits until running jobs end.", busy=True)
    return refusal.countered(work, fact, _on_idle_nodes(request), refusal.more_nodes(own, begun_on))


def _on_idle_nodes(request: Request) -> refusal.Planned:
    """The same request with other options, on the idle cluster."""

    def planned(changed: TrainOptions) -> tuple[Choice, Sequence[Room]]:
        asked = replace(request, work=request.work.asked(changed))
        idle = [room.when_idle() for room in asked.rooms()]
        return asked.choose(idle), idle

    return planned


def _plan(request: Request, rooms: Sequence[Room], choice: Choice, best: Candidate) -> Plan:
    work, numbers = request.work, request.numbers
    mixed = _mixed(request, rooms)
    workers = tuple(
        Placement(rank=rank, node_id=slot.node.id, node_name=slot.node.name, device=slot.device, share=share)
        for rank, (slot, share) in enumerate(zip(best.slots, best.shares, strict=True))
    )
    return Plan(
        workers=workers,
        hardware_class=best.slots[0].node.hardware_class,
        cores_per_worker=work.options.threads,
        memory_per_worker=max(room.memory for room, _, _ in best.taken),
        microbatches=work.options.microbatches,
        most_workers=max(best.workers, most_workers(work, best, numbers)),
        summary=summary(work, rooms, choice, best, request.wish),
        reasons=node_reasons(work, rooms, choice, best, numbers),
        predicted=best.predicted,
        nodes=_nodes(work, best),
        alternatives=alternatives(work, choice, best),
        faster=faster(work, best, mixed, numbers.at_most) if numbers.exactly is None else (),
    )


def _mixed(request: Request, rooms: Sequence[Room]) -> Candidate | None:
    """The choice, were other hardware classes allowed to join."""
    usable = {room.node.hardware_class for room in rooms if room.now and not room.excluded}
    if not request.work.options.reproducible or len(usable) < 2 or request.numbers.exactly is not None:
        return None
    options = request.work.options.model_copy(update={"reproducible": False})
    together = replace(request, work=request.work.asked(options), begun_on=None)
    return together.choose(rooms).best


def _nodes(work: Workload, best: Candidate) -> tuple[ChosenNode, ...]:
    """What each chosen node has to do, and what it has for it."""
    found: list[ChosenNode] = []
    crew, first = crew_of(work, best.slots), 0
    sent = sent_by_each(work, crew, best.shares)
    for _, node, number in best.taken:
        own = range(first, first + number)
        shares = [best.shares[rank] for rank in own]
        part = NodePart(
            step_s=max(crew.cell_s[rank] * (end - begin) for rank, (begin, end) in zip(own, shares, strict=True)),
            finish_s=best.predicted.finish_s,
            memory_bytes=number * best.predicted.memory_bytes,
            traffic_bytes_per_step=round(sum(sent[rank] for rank in own)),
        )
        found.append(
            ChosenNode(
                name=node.name,
                workers=number,
                share=(shares[0][0], shares[-1][1]),
                cores=node.free_cores,
                memory=node.free_memory,
                price=node.price,
                predicted=part,
            )
        )
        first += number
    return tuple(found)
