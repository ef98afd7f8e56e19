"""Why each node was taken or not, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

from paceline.explain import counted, duration, size
from paceline.plan import Node, NodeReason, Prediction
from paceline.planner.choose import WORTH, Choice, Numbers, allowed, gains
from paceline.planner.profiles import Workload, costs
from paceline.planner.rooms import Room
from paceline.planner.search import Candidate, exact

TRIED = 24  # kinds of nodes that are each tried beside the chosen ones


def told(predicted: Prediction) -> str:
    """What a job's time is measured by: the time to its bound, or a step's where that is not known."""
    if predicted.finish_s is None:
        return f"{duration(predicted.step_s)} a step"
    return f"{duration(predicted.finish_s)} ({duration(predicted.step_s)} a step)"


def node_reasons(
    work: Workload, rooms: Sequence[Room], choice: Choice, chosen: Candidate, numbers: Numbers
) -> tuple[NodeReason, ...]:
    """A reason for every node, told once for those that are alike."""
    pool = chosen.slots[0].node.hardware_class
    left, others = _why_left(work, rooms, chosen, numbers), _best_of_other_classes(choice, pool)
    mine: dict[str, tuple[Room, int]] = {node.name: (room, number) for room, node, number in chosen.taken}
    reasons = [
        NodeReason(nodes=(name,), taken=True, reason=f"takes {number} of {room.now} places; {room.limit}")
        for name, (room, number) in mine.items()
    ]
    for at, room in enumerate(rooms):
        names = tuple(map(attrgetter("name"), room.nodes))
        if not mine.keys().isdisjoint(names):
            names = tuple(name for name in names if name not in mine)
        if room.excluded:
            text = room.excluded
        elif work.options.reproducible and room.node.hardware_class != pool:
            name = room.node.hardware_class
            text = f"hardware class {name} computes other bits than {pool}{others.get(name, '')}"
        elif not room.now:
            text = f"no place for a worker of {size(room.memory)}: {room.limit}"
        else:
            text = f"not needed: {left[at]}"
        if names:
            reasons.append(NodeReason(nodes=names, taken=False, reason=text))
    return tuple(reasons)


def _best_of_other_classes(choice: Choice, pool: str) -> Mapping[str, str]:
    best: dict[str, str] = {}
    for candidate in choice.candidates:
        name = candidate.slots[0].node.hardware_class
        if name != pool and name not in best:
            best[name] = f"; on its nodes alone the job would take {told(candidate.predicted)}"
    return best


def _why_left(work: Workload, rooms: Sequence[Room], chosen: Candidate, numbers: Numbers) -> dict[int, str]:
    """For each room with places: why its nodes are not taken, or not all of them."""
    why: dict[int, str] = {}
    tried = 0
    for at, room in enumerate(rooms):
        if room.excluded or not room.now:
            continue
        if numbers.exactly is not None:
            why[at] = f"the {counted(chosen.workers, 'worker')} asked for fit on other nodes, which are no slower"
        elif chosen.workers >= numbers.at_most:
            why[at] = f"each of the {numbers.at_most} microbatches has a worker of its own"
        elif room.lone or chosen.taken[0][0].lone:
            why[at] = f"the memory of one of both is too small for an exchange: {size(room.memory)} for a lone worker"
        elif tried < TRIED:
            tried += 1
            why[at] = _with_it(work, room, chosen, numbers)
        else:
            alone = costs(work, room.node, room.kind).cell_s
            why[at] = f"{TRIED} other kinds of nodes go before it; a microbatch takes it {duration(alone)}"
    return why


def _with_it(work: Workload, room: Room, chosen: Candidate, numbers: Numbers) -> str:
    """What one such node more would make of the job."""
    names = {node.id for _, node, _ in chosen.taken}
    node = next((node for node in room.nodes if node.id not in names), None)
    if node is None:
        return "all of them are taken"
    found = beside(work, chosen, room, node, numbers.at_most)
    if not allowed(work.options, found.predicted) and allowed(work.options, chosen.predicted):
        cost, budget = found.predicted.cost, work.options.resources.max_cost
        return f"with it the job would cost {money(cost)}, and max_cost is {money(budget)}"
    text = f"with it the job would take {told(found.predicted)}, without it {told(chosen.predicted)}"
    if gains(chosen, found):
        return text
    shorter = (found.predicted.time_s, found.predicted.step_s) < (chosen.predicted.time_s, chosen.predicted.step_s)
    return f"{text}: {f'shorter by less than {WORTH:.0%}' if shorter else 'longer'}"


def beside(work: Workload, chosen: Candidate, room: Room, node: Node, at_most: int) -> Candidate:
    """The chosen workers, and one or all that fit on one node more: what is faster."""
    left = max(1, at_most - chosen.workers)
    numbers = sorted({1, min(room.now, left)})
    return min(
        (exact(work, (*chosen.taken, (room, node, number))) for number in numbers),
        key=lambda candidate: candidate.order,
    )


def money(amount: float | None) -> str:
    return "more than can be told" if amount is None else f"{amount:.4g}"
