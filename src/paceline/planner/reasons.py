"""Why each node was taken or not, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline.explain import duration, size
from paceline.plan import Node, NodeReason, Prediction
from paceline.planner.choose import Choice, Numbers, allowed, gains
from paceline.planner.profiles import Workload, costs
from paceline.planner.rooms import Room
from paceline.planner.search import Candidate, Search

TRIED = 24  # kinds of nodes that are each tried beside the chosen ones


def told(predicted: Prediction) -> str:
    """What a job's time is measured by: the time to its bound, or a step's where that is not known."""
    if predicted.finish_s is None:
        return f"{duration(predicted.step_s)} a step"
    return f"{duration(predicted.finish_s)} ({duration(predicted.step_s)} a step)"


def node_reasons(
    work: Workload, rooms: Sequence[Room], choice: Choice, chosen: Candidate, numbers: Numbers
) -> tuple[NodeReason, ...]:
    """A line for every node, in the order of their names."""
    mine = {node.id: number for _, node, number in chosen.taken}
    pool = chosen.slots[0].node.hardware_class
    reasons: dict[str, tuple[str, NodeReason]] = {}
    left = _why_left(work, rooms, chosen, numbers)
    others = _best_of_other_classes(choice, pool)
    for at, room in enumerate(rooms):
        for node in room.nodes:
            if node.id in mine:
                text = f"takes {mine[node.id]} of {room.now} places; {room.limit(node)}"
            elif room.excluded:
                text = room.excluded
            elif work.options.reproducible and node.hardware_class != pool:
                text = f"hardware class {node.hardware_class} computes other bits than {pool}"
                text += others.get(node.hardware_class, "")
            elif not room.now:
                text = f"no place for a worker of {size(room.memory)}: {room.limit(node)}"
            else:
                text = f"not needed: {left[at]}"
            reasons[node.id] = (node.name, NodeReason(node=node.name, taken=node.id in mine, reason=text))
    return tuple(reason for _, reason in sorted(reasons.values(), key=lambda pair: pair[0]))


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
            why[at] = f"{chosen.workers} worker(s) were asked for, and others are as fast or nearer to each other"
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
    if not allowed(work, found) and allowed(work, chosen):
        cost, budget = found.predicted.cost, work.options.resources.max_cost
        return f"with it the job would cost {money(cost)}, and max_cost is {money(budget)}"
    slower = found.predicted.finish_s is not None and found.predicted.finish_s > (chosen.predicted.finish_s or 0.0)
    verdict = "longer" if slower else "too little less"
    text = f"with it the job would take {told(found.predicted)}, without it {told(chosen.predicted)}"
    return text if gains(chosen, found) else f"{text}: {verdict}"


def beside(work: Workload, chosen: Candidate, room: Room, node: Node, at_most: int) -> Candidate:
    """The chosen workers, and one or all that fit on one node more: what is faster."""
    search, left = Search(work, ()), max(1, at_most - chosen.workers)
    numbers = sorted({1, min(room.now, left)})
    return min(
        (search.exact((*chosen.taken, (room, node, number))) for number in numbers),
        key=lambda candidate: candidate.order,
    )


def money(amount: float | None) -> str:
    return "more than can be told" if amount is None else f"{amount:.4g}"
