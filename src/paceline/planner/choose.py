"""Which of the candidates: the least predicted time to the stop condition, within what the request allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from paceline.plan import Prediction
from paceline.planner.predict import slowdown
from paceline.planner.profiles import Workload
from paceline.planner.rooms import Room
from paceline.planner.search import Candidate, Search, Taken, exact
from paceline.spec import TrainOptions

WORTH = 0.02  # of the time: what a further worker has to save, since a prediction knows no better
FINALISTS = 6
PRICES = 4


@dataclass(frozen=True)
class Numbers:
    """How many workers: exactly, or else as many as help, at most so many. fitting: rather fewer than none."""

    exactly: int | None
    at_most: int
    fitting: bool = False

    def of(self, room_for: int) -> tuple[int, int]:
        """(least, most) where so many fit."""
        if self.exactly is None:
            return 1, self.at_most
        number = max(1, min(self.exactly, room_for)) if self.fitting else self.exactly
        return number, number


@dataclass(frozen=True)
class Choice:
    """best: None where no candidate is within the limits. candidates: all that were compared, best first."""

    best: Candidate | None
    candidates: tuple[Candidate, ...] = ()


def choose(work: Workload, pools: Iterable[Sequence[Room]], numbers: Numbers) -> Choice:
    """Compare candidates from each pool: nodes that may train together."""
    compared: dict[tuple[tuple[str, str], ...], Candidate] = {}
    best: list[Candidate] = []
    for pool in pools:
        own = {c.places: c for rooms in _priced(work, pool) for c in _compared(work, rooms, numbers)}
        compared |= own
        within = [candidate for candidate in own.values() if allowed(work.options, candidate.predicted)]
        if within:
            best.append(_trimmed(work, within, numbers))
            compared[best[-1].places] = best[-1]
    by_order = tuple(sorted(compared.values(), key=lambda candidate: candidate.order))
    if numbers.fitting:
        most = max((candidate.workers for candidate in best), default=0)
        best = [candidate for candidate in best if candidate.workers == most]
    return Choice(min(best, key=_surely, default=None), by_order)


def _surely(candidate: Candidate) -> tuple[object, ...]:
    """Where one hardware class was measured and another is guessed at, a guess has to be that much better."""
    doubtful = 1 + candidate.predicted.uncertainty
    return candidate.predicted.time_s * doubtful, candidate.predicted.step_s * doubtful, candidate.order


def allowed(options: TrainOptions, predicted: Prediction) -> bool:
    """Whether it keeps the request's deadline and cost."""
    deadline, budget = options.deadline, options.resources.max_cost
    if budget is not None and (predicted.cost is None or predicted.cost > budget):
        return False
    return deadline is None or predicted.finish_s is None or predicted.finish_s <= deadline


def _priced(work: Workload, pool: Sequence[Room]) -> list[list[Room]]:
    """The pool, and where cost is bounded, its cheaper parts as well."""
    prices = sorted({room.node.price for room in pool if room.now})
    if work.options.resources.max_cost is None or len(prices) < 2:
        return [list(pool)]
    ceilings = prices[:: max(1, len(prices) // PRICES)]
    return [list(pool), *([room for room in pool if room.node.price <= ceiling] for ceiling in ceilings)]


def _compared(work: Workload, rooms: Sequence[Room], numbers: Numbers) -> list[Candidate]:
    """The best of each number of workers, exactly split where they are promising."""
    search = Search(work, rooms)
    fits = search.most or (1 if any(room.now for room in rooms) else 0)
    least, most = numbers.of(fits)
    if fits < least:
        return []
    found = search.by_number(least, min(most, max(fits, 1)))
    finalists = {least, *sorted(found, key=lambda number: found[number].order)[:FINALISTS]}
    return [exact(work, found[number].taken) for number in sorted(finalists) if number in found]


def _fewest(candidates: Sequence[Candidate], fastest: Candidate) -> Candidate:
    """The fewest workers of those that are nearly as fast as the fastest."""
    nearly = [candidate for candidate in candidates if not gains(candidate, fastest)]
    return min(nearly, key=lambda candidate: (candidate.workers, candidate.order))


def gains(slower: Candidate, faster: Candidate) -> bool:
    """Whether the second saves more of the job's time (of a step's, where that is equal) than `WORTH`."""
    old, new = slower.predicted, faster.predicted
    if old.time_s != new.time_s:
        return new.time_s < (1 - WORTH) * old.time_s
    return new.step_s < (1 - WORTH) * old.step_s


def _trimmed(work: Workload, within: Sequence[Candidate], numbers: Numbers) -> Candidate:
    """The choice, without whoever does not help: never a node, nor a worker, that makes the job slower."""
    fastest = min(within, key=lambda candidate: candidate.order)
    chosen = _fewest(within, fastest)
    while numbers.exactly is None and chosen.workers > 1:
        fewer = [exact(work, taken) for taken in _one_less(work, chosen.taken)]
        better = [
            candidate
            for candidate in fewer
            if allowed(work.options, candidate.predicted) and not gains(candidate, fastest)
        ]
        if not better:
            break
        chosen = min(better, key=lambda candidate: candidate.order)
    return chosen


def _one_less(work: Workload, taken: Taken) -> Iterator[Taken]:
    """A node less, or a worker less on it; nodes that are alike, and linked alike, once."""
    seen: set[object] = set()
    mine = {node.id for _, node, _ in taken}
    for at, (room, node, number) in enumerate(taken):
        linked = not mine.isdisjoint(work.network.near(node.id))
        kind = (id(room), number, slowdown(work, node, number), node.id if linked else "")
        if kind in seen:
            continue
        seen.add(kind)
        if len(taken) > 1:
            yield (*taken[:at], *taken[at + 1 :])
        if number > 1:
            yield (*taken[:at], (room, node, number - 1), *taken[at + 1 :])
