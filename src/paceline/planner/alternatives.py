"""What else was compared, and what would be faster: in numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from paceline.explain import duration
from paceline.measured import Link
from paceline.plan import Alternative
from paceline.planner.choose import Choice, allowed, gains
from paceline.planner.exchange import UNKNOWN_LINK
from paceline.planner.profiles import Workload
from paceline.planner.reasons import beside, money, told
from paceline.planner.search import Candidate, exact

ALTERNATIVES = 6
FASTER_LINKS = 10


def alternatives(work: Workload, choice: Choice, chosen: Candidate) -> tuple[Alternative, ...]:
    """The best of what else was compared; what one worker would take is always among it."""
    others = [candidate for candidate in choice.candidates if candidate.slots != chosen.slots]
    alone = next((candidate for candidate in others if candidate.workers == 1), None)
    shown = others[:ALTERNATIVES]
    if alone is not None and alone not in shown:
        shown[-1] = alone
    return tuple(_alternative(work, other, chosen) for other in shown)


def _alternative(work: Workload, other: Candidate, chosen: Candidate) -> Alternative:
    mine, best = other.predicted, chosen.predicted
    if not allowed(work, other):
        budget, deadline = work.options.resources.max_cost, work.options.deadline
        over = budget is not None and (mine.cost is None or mine.cost > budget)
        reason = f"costs {money(mine.cost)} of {money(budget)}" if over else f"deadline {duration(deadline)}"
    elif gains(other, chosen):
        before, after = (p.finish_s if p.finish_s is not None else p.step_s for p in (mine, best))
        before, after = (mine.step_s, best.step_s) if before == after else (before, after)
        reason = f"{before / after:.3g} times the time"
    elif other.workers > chosen.workers:
        reason = f"{other.workers - chosen.workers} workers more save less than 2%"
    else:
        reason = "as fast, by the prediction"
    on: dict[str, int] = {node.name: number for _, node, number in other.taken}
    return Alternative(mode="exact", workers_on=on, predicted=mine, reason=reason)


def faster(work: Workload, chosen: Candidate, mixed: Candidate | None, at_most: int) -> tuple[str, ...]:
    """What would save time: a node more, faster links, other hardware classes, a finer grid."""
    hints: list[str] = []
    now = told(chosen.predicted)
    if chosen.workers < at_most and not chosen.taken[0][0].lone:
        room, node, _ = chosen.taken[0]
        twin = node.model_copy(update={"id": f"{node.id}+", "name": f"{node.name}+", "is_master": False})
        found = beside(work, chosen, room, twin, at_most)
        if gains(chosen, found):
            has = f"{node.hardware_class}, {node.cores} cores"
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
    known = ((pair, work.links.get(pair[0], {}).get(pair[1], UNKNOWN_LINK)) for pair in pairs)
    return tuple(
        link.model_copy(update={"ends": pair, "bytes_per_s": FASTER_LINKS * link.bytes_per_s}) for pair, link in known
    )
