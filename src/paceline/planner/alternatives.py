"""What else was compared, and what would be faster: in numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from paceline.explain import counted, duration
from paceline.measured import Link
from paceline.plan import Alternative, Node
from paceline.planner.choose import WORTH, Choice, allowed, gains
from paceline.planner.profiles import Workload
from paceline.planner.reasons import beside, money, told
from paceline.planner.search import Candidate, exact

ALTERNATIVES = 6
FASTER_LINKS = 10


def alternatives(work: Workload, choice: Choice, chosen: Candidate) -> tuple[Alternative, ...]:
    """The best of what else was compared; what one worker would take is always among it."""
    others = [candidate for candidate in choice.candidates if candidate.places != chosen.places]
    alone = next((candidate for candidate in others if candidate.workers == 1), None)
    shown = others[:ALTERNATIVES]
    if alone is not None and alone not in shown:
        shown[-1] = alone
    return tuple(_alternative(work, other, chosen) for other in shown)


def _alternative(work: Workload, other: Candidate, chosen: Candidate) -> Alternative:
    mine, best = other.predicted, chosen.predicted
    if not allowed(work.options, mine):
        budget, deadline = work.options.resources.max_cost, work.options.deadline
        over = budget is not None and (mine.cost is None or mine.cost > budget)
        reason = f"costs {money(mine.cost)} of {money(budget)}" if over else f"deadline {duration(deadline)}"
    elif gains(other, chosen):
        by_steps = mine.time_s == best.time_s
        times = mine.step_s / best.step_s if by_steps else mine.time_s / best.time_s
        reason = f"{times:.3g} times the time{' a step' if by_steps else ''}"
    elif other.workers > chosen.workers:
        reason = f"{counted(other.workers - chosen.workers, 'worker')} more would save less than {WORTH:.0%}"
    else:
        reason = "no faster, by the prediction"
    on: dict[str, int] = {node.name: number for _, node, number in other.taken}
    return Alternative(mode="exact", workers_on=on, predicted=mine, reason=reason)


def faster(work: Workload, chosen: Candidate, mixed: Candidate | None, at_most: int) -> tuple[str, ...]:
    """What would save time: a node more, faster links, other hardware classes, a finer grid."""
    hints: list[str] = []
    now = told(chosen.predicted)
    if chosen.workers < at_most and not chosen.taken[0][0].lone:
        room, node, _ = chosen.taken[0]
        twin = node.model_copy(update={"id": f"{node.id}+", "name": f"{node.name}+", "is_master": False})
        found = beside(_with_twin(work, chosen, node, twin), chosen, room, twin, at_most)
        if gains(chosen, found):
            has = f"{node.hardware_class}, {counted(node.cores, 'core')}"
            hints.append(f"one more node like {node.name} ({has}): {told(found.predicted)} instead of {now}")
    if len(chosen.taken) > 1:
        quick = replace(work, known=work.known.model_copy(update={"links": _tenfold(work, chosen)}))
        found = exact(quick, chosen.taken)
        if gains(chosen, found):
            hints.append(f"links of ten times the rate between its nodes: {told(found.predicted)} instead of {now}")
    if mixed is not None and gains(chosen, mixed):
        classes = ", ".join(sorted({node.hardware_class for _, node, _ in mixed.taken}))
        hints.append(f"reproducible=False, on {classes} together: {told(mixed.predicted)} instead of {now}")
    if chosen.workers == work.options.microbatches < work.options.batch_size and not work.facts.chose_microbatches:
        hints.append(f"a finer grid: {chosen.workers} microbatches let no more workers help; it gives another digest")
    return tuple(hints)


def _tenfold(work: Workload, chosen: Candidate) -> tuple[Link, ...]:
    """The links between its nodes, as they are known, at ten times the rate."""
    pairs = combinations(sorted(node.id for _, node, _ in chosen.taken), 2)
    known = ((pair, work.network.between(*pair)) for pair in pairs)
    return tuple(
        link.model_copy(update={"ends": pair, "bytes_per_s": FASTER_LINKS * link.bytes_per_s}) for pair, link in known
    )


def _with_twin(work: Workload, chosen: Candidate, node: Node, twin: Node) -> Workload:
    """With one more node that is linked like the other, and to it as well as that is to any."""
    own = work.network.near(node.id)
    near = {other.id: own[other.id] for _, other, _ in chosen.taken if other.id in own}
    if near:
        near[node.id] = max(near.values(), key=lambda link: (link.bytes_per_s, -link.latency_s))
    links = tuple(link.model_copy(update={"ends": (name, twin.id)}) for name, link in near.items())
    return replace(work, known=work.known.model_copy(update={"links": (*work.known.links, *links)}))
