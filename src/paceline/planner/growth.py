"""How far a job would grow, and where its next worker goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paceline.errors import Unplaceable
from paceline.explain import duration, size
from paceline.measured import Measured
from paceline.plan import Node, Placement, Plan
from paceline.planner.choose import WORTH, Numbers
from paceline.planner.predict import Slot, best_shares, predict
from paceline.planner.profiles import Workload
from paceline.planner.rooms import Room, rooms_of
from paceline.planner.search import Candidate
from paceline.spec import Facts, TrainOptions

LOOKED_AT = 8  # nodes of a kind that a place is looked for on, beside those that train already


def most_workers(work: Workload, best: Candidate, numbers: Numbers) -> int:
    """As many workers as the job would use, were all of them side by side on one large node like the first."""
    if numbers.exactly is not None:
        return numbers.exactly
    cells = numbers.at_most
    if best.taken[0][0].lone or best.workers == cells:
        return best.workers
    ideal = best.slots[0].node.model_copy(update={"cores": cells * work.options.threads, "load": 0.0})
    counts: list[int] = sorted({*range(1, min(cells, 8) + 1), *(max(1, cells // part) for part in range(1, 9))})
    steps = {count: _step_s(work, [Slot(ideal, best.slots[0].device)] * count) for count in counts}
    return next(count for count in counts if steps[count] * (1 - WORTH) <= min(steps.values()))


def one_more(
    nodes: Sequence[Node],
    plan: Plan,
    options: TrainOptions,
    facts: Facts,
    known: Measured = Measured(),  # noqa: B008 - it is frozen
    wish: int | None = None,
) -> Placement:
    """A place for one more worker of a running job, on its hardware class.

    Raises Unplaceable where there is none or, unless a number of workers was asked for, where it would not help.
    """
    kind = plan.workers[0].kind
    work = Workload(options.with_resources(device=kind, workers=None), facts, known)
    by_id = {node.id: node for node in nodes}
    present = [Slot(by_id[worker.node_id], worker.device) for worker in plan.workers if worker.node_id in by_id]
    alike = [node for node in nodes if node.hardware_class == plan.hardware_class or not options.reproducible]
    rooms = [room for room in rooms_of(work, alike, kind) if room.now and not room.lone]
    left = max(1, (wish or plan.most_workers) - len(present))
    places = sorted(_places(rooms, present, left), key=lambda slot: (_step_s(work, [*present, slot]), slot.node.name))
    if not places:
        needs = f"{plan.cores_per_worker} core(s) and {size(plan.memory_per_worker)} on {kind}"
        raise Unplaceable(f"one more worker needs {needs}, and none of {len(alike)} nodes has that free.", busy=True)
    if options.resources.workers is None and wish is None and present:
        _check_gain(work, present, places[:left])
    first = places[0]
    return Placement(rank=0, node_id=first.node.id, node_name=first.node.name, device=first.device, share=(0, 0))


def _places(rooms: Sequence[Room], present: Sequence[Slot], left: int) -> Iterator[Slot]:
    """Free places: on the nodes that train already, and on some of each other kind."""
    training = {slot.node.id for slot in present}
    for room in rooms:
        nodes = {node.id: node for node in (*(n for n in room.nodes if n.id in training), *room.nodes[:LOOKED_AT])}
        for node in nodes.values():
            yield from room.slots(node)[:left]


def _check_gain(work: Workload, present: Sequence[Slot], places: Sequence[Slot]) -> None:
    """Raise Unplaceable unless the first of the places, with some or none of the others, make a step shorter."""
    now = _step_s(work, present)
    steps = [_step_s(work, [*present, *places[:number]]) for number in range(1, len(places) + 1)]
    if min(steps) > (1 - WORTH) * now:
        raise Unplaceable(
            f"one more worker, on {places[0].node.name}, would make a step take {duration(steps[0])}; "
            f"it takes {duration(now)} on {len(present)}.",
            "Ask for a number of workers with `paceline scale`, to have it all the same.",
            busy=False,
        )


def _step_s(work: Workload, slots: Sequence[Slot]) -> float:
    return predict(work, slots, best_shares(work, slots)).step_s
