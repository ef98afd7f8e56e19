"""A request that no set of nodes can meet: what it needs, what there is, and the nearest thing that would fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from paceline.errors import Unplaceable
from paceline.explain import counted, duration, size
from paceline.plan import Prediction
from paceline.planner.choose import Choice
from paceline.planner.profiles import Workload
from paceline.planner.reasons import money, told
from paceline.planner.rooms import Room
from paceline.planner.summary import grid
from paceline.spec import TrainOptions

Planned = Callable[[TrainOptions], tuple[Choice, Sequence[Room]]]  # on the idle cluster
Changes = dict[str, Any]  # of a spec's fields; those of its resources below "resources"


def class_gone(rooms: Sequence[Room], begun_on: str) -> Unplaceable:
    """No node of the class that the job began on may take it."""
    why = "; ".join(f"{node.name}: {_why_not(room, begun_on)}" for room in rooms for node in room.nodes)
    return Unplaceable(
        f"the job began on hardware class {begun_on}, and no node of it may take the job: "
        f"{why or 'the cluster has 0 nodes'}.",
        "Add a node of that class with `paceline join`; or cancel the job and submit it again, to begin on another.",
        busy=False,
        hardware_class=begun_on,
    )


def _why_not(room: Room, begun_on: str) -> str:
    return room.excluded or f"hardware class {room.node.hardware_class} computes other bits than {begun_on}"


def asked_for_too_many(work: Workload, planned: Planned) -> Unplaceable:
    """More workers than microbatches: some would have nothing to do."""
    asked, cells = work.options.resources.workers, work.options.microbatches
    fewer: Changes = {"resources": {"workers": cells}}
    fits = planned(_with(work.options, fewer))[0].best is not None
    return Unplaceable(
        f"{asked} workers were asked for, and a batch has {grid(work)}.",
        f"Ask for at most {counted(cells, 'worker')}, or set microbatches={asked} "
        f"and a batch_size that is a multiple of it.",
        busy=False,
        **({"counter": fewer} if fits else {}),
    )


def needs_of(work: Workload, kind: str, memory: int, workers: int, begun_on: str | None) -> str:
    needs = f"{workers} worker(s) with {work.options.threads} core(s)"
    needs += f" and {size(memory)} each on {kind}" if memory else f" each on {kind}"
    return needs + (f", of the hardware class {begun_on} that it began on" if begun_on else "")


def too_little(work: Workload, rooms: Sequence[Room], needs: str) -> str:
    """The fact: what the job needs, and what there is."""
    if not rooms:
        return f"the job needs {needs}, and the cluster has no nodes."
    usable = [room for room in rooms if not room.excluded]
    if not usable:
        why = "; ".join(f"{node.name}: {room.excluded}" for room in rooms for node in room.nodes)
        return f"the job needs {needs}, and no node may take it: {why}."
    now = sum(room.now * len(room.nodes) for room in usable)
    idle = sum(room.idle * len(room.nodes) for room in usable)
    best = max(usable, key=lambda room: (room.idle, room.node.cores, room.node.memory))
    return (
        f"the job needs {needs}; there is room for {now} now and {idle} on idle nodes. "
        f"The best node, {best.node.name}, has {best.limit}."
    )


def more_nodes(rooms: Sequence[Room], begun_on: str | None) -> str:
    """What helps without a change to the request."""
    usable = [room for room in rooms if not room.excluded]
    short = usable and all(node.memory < room.memory for room in usable for node in room.nodes)
    has = f" with {size(min(room.memory for room in usable))} of memory" if short else ""
    of = f" of the class {begun_on}" if begun_on else ""
    return f"add a node{of}{has} with `paceline join`" + (", or train a smaller model" if short else "")


def over_limits(work: Workload, choice: Choice) -> str:
    """The fact: what the best would take, and what the request allows."""
    cheapest = min(choice.candidates, key=lambda c: math.inf if c.predicted.cost is None else c.predicted.cost)
    return beyond(work.options, choice.candidates[0].predicted, f"{money(cheapest.predicted.cost)} at least")


def beyond(options: TrainOptions, best: Prediction, costs: str) -> str:
    """What the best would take, and what the request allows. costs: as it is told."""
    limits = []
    if options.deadline is not None:
        limits.append(f"its deadline is {duration(options.deadline)}")
    if options.resources.max_cost is not None:
        limits.append(f"it costs {costs}, and max_cost is {money(options.resources.max_cost)}")
    return f"the job is predicted to take {told(best)} at best, ±{best.uncertainty:.0%}; {', and '.join(limits)}."


def countered(work: Workload, fact: str, planned: Planned, also: str) -> Unplaceable:
    """The refusal, with the first change to the request that fits."""
    for changes in _nearest_first(work.options, planned):
        changed = _with(work.options, changes)
        choice, _ = planned(changed)
        if choice.best is not None:
            return Unplaceable(fact, f"It would fit with {_written(changes)}; or {also}.", busy=False, counter=changes)
    return Unplaceable(fact, f"{also[0].upper()}{also[1:]}.", busy=False)


def _nearest_first(options: TrainOptions, planned: Planned) -> Iterator[Changes]:
    asked = options.resources
    if options.deadline is not None:
        yield from _limits(options, planned, {"deadline": None})
    if asked.max_cost is not None:
        yield from _limits(options, planned, {"resources": {"max_cost": None}})
    if options.deadline is not None and asked.max_cost is not None:
        yield from _limits(options, planned, {"deadline": None, "resources": {"max_cost": None}})
    _, rooms = planned(options)
    usable = [room for room in rooms if not room.excluded]
    fewer = _most(usable)
    if asked.workers is not None and 0 < fewer < asked.workers:
        yield {"resources": {"workers": fewer}}
    if asked.memory is not None:
        yield from _less_memory(usable, options, asked.workers or 1)
    if options.threads > 1:
        yield {"threads": max((room.node.cores for room in usable if room.node.cores < options.threads), default=1)}
        yield {"threads": 1}
    if asked.device not in ("auto", "cpu"):
        yield {"resources": {"device": "cpu"}}
    if asked.nodes is not None:
        yield {"resources": {"nodes": None}}
    if asked.workers is not None:
        yield {"resources": {"workers": None}}
        yield {"threads": 1, "resources": {"workers": None, "memory": None, "device": "auto", "nodes": None}}


def _limits(options: TrainOptions, planned: Planned, lifted: Changes) -> Iterator[Changes]:
    """The limit that the best without it would keep."""
    choice, _ = planned(_with(options, lifted))
    if choice.best is None:
        return
    predicted, kept = choice.best.predicted, dict(lifted)
    if "deadline" in lifted and predicted.finish_s is not None:
        kept["deadline"] = _rounded_up(predicted.finish_s, 2)
    if "resources" in lifted and predicted.cost is not None:
        kept["resources"] = {"max_cost": _rounded_up(predicted.cost, 4)}
    yield kept


def _rounded_up(value: float, digits: int) -> float:
    """Never below the value, though it may be a float's last bit above the rounded number."""
    scale = 10.0**digits
    rounded = math.ceil(value * scale) / scale
    return rounded if rounded >= value else round(rounded + 1 / scale, digits)


def _most(rooms: Sequence[Room]) -> int:
    """Workers that fit on idle nodes that may train together: of one class, if that is asked."""
    classes: dict[str, int] = {}
    for room in rooms:
        classes[room.node.hardware_class] = classes.get(room.node.hardware_class, 0) + room.idle * len(room.nodes)
    return max(classes.values(), default=0)


def _less_memory(rooms: Sequence[Room], options: TrainOptions, workers: int) -> Iterator[Changes]:
    """As much as the nodes have for each of so many workers."""
    for part in range(1, workers + 1):
        free = max((node.memory // part for room in rooms for node in room.nodes if not node.is_master), default=0)
        if 0 < free < (options.resources.memory or 0):
            yield {"resources": {"memory": free}}


def _with(options: TrainOptions, changes: Changes) -> TrainOptions:
    resources = options.resources.model_copy(update=changes.get("resources", {}))
    return options.model_copy(update={**changes, "resources": resources})


def _written(changes: Changes) -> str:
    """As a user would write it."""
    plain = [f"{name}={value!r}" for name, value in changes.items() if name != "resources"]
    inside = [f"{name}={value!r}" for name, value in changes.get("resources", {}).items()]
    return ", ".join([*([f"resources=pl.Resources({', '.join(inside)})"] if inside else []), *plain])
