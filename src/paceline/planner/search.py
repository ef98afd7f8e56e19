"""Sets of workers worth a look: each grown from one node, by whatever is predicted to help most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from itertools import accumulate, pairwise

from paceline.plan import Node, Prediction
from paceline.planner.predict import Slot, crew_of, predict_crew, slowdown
from paceline.planner.profiles import Workload, costs
from paceline.planner.rooms import Room
from paceline.shares import Share, quickest, split_by_speed

LOOKED_AT = 2  # kinds of nodes that a step tries of each: the quickest, the roomiest, those with the best links
BULK = 4  # a step adds up to a fourth of the workers that there are already
HOPELESS = 2  # times the workers of the best so far: nothing better comes after

Taken = tuple[tuple[Room, Node, int], ...]  # so many workers on each of these nodes


@dataclass(frozen=True)
class Candidate:
    """Workers in rank order, those of a node side by side, with their shares."""

    taken: Taken
    slots: tuple[Slot, ...]
    shares: tuple[Share, ...]
    predicted: Prediction

    @property
    def workers(self) -> int:
        return len(self.slots)

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """The nodes' ids and devices, by rank."""
        return tuple([(slot.node.id, slot.device) for slot in self.slots])

    @property
    def order(self) -> tuple[float, float, int, float, tuple[str, ...]]:
        """Least time first; then few workers, a low price, names."""
        price = sum(node.price for _, node, _ in self.taken)
        names = tuple(node.name for _, node, _ in self.taken)
        return self.predicted.time_s, self.predicted.step_s, self.workers, price, names


def exact(work: Workload, taken: Taken) -> Candidate:
    """With the split of the grid that would be used."""
    crew = crew_of(work, slots_of(taken))
    shares = split_by_speed(work.options.microbatches, crew.cell_s)
    return Candidate(taken, tuple(crew.slots), tuple(shares), predict_crew(work, crew, shares))


def rough(work: Workload, taken: Taken) -> Candidate:
    """With a split that is as quick, and found sooner."""
    crew = crew_of(work, slots_of(taken))
    counts = quickest(work.options.microbatches, crew.cell_s)
    shares = tuple(pairwise(accumulate(counts, initial=0)))
    return Candidate(taken, tuple(crew.slots), shares, predict_crew(work, crew, shares))


def slots_of(taken: Taken) -> tuple[Slot, ...]:
    return tuple(slot for room, node, number in taken for slot in room.slots(node)[:number])


class Search:
    """Over nodes that may train together."""

    def __init__(self, work: Workload, rooms: Sequence[Room]) -> None:
        self._work = work
        self._rooms = front(work, [room for room in rooms if room.now])
        self._all = rooms
        self._seconds = {id(room): seconds_alone(work, room) for room in self._rooms}
        self.most = sum(room.now * len(room.nodes) for room in rooms if not room.lone)

    @cached_property
    def _linked(self) -> dict[str, tuple[Room, Node]]:
        """By id, the nodes with a measured link."""
        return {node.id: (room, node) for room in self._all if room.now for node in room.linked}

    def by_number(self, least: int, most: int) -> dict[int, Candidate]:
        """The best found, by their number of workers, roughly split."""
        best: dict[int, Candidate] = {}
        for start in self._starts(least):
            leading: Candidate | None = None
            for found in self._grown(start, most):
                if found.workers >= least and (found.workers not in best or found.order < best[found.workers].order):
                    best[found.workers] = found
                if leading is None or found.order < leading.order:
                    leading = found
                if found.workers > max(HOPELESS * leading.workers, least, 2):
                    break
        return best

    def _starts(self, least: int) -> list[Candidate]:
        """The node that is best alone, and the one with the most to give."""
        usable = [room for room in self._rooms if not room.lone or least <= 1]
        if not usable:
            return []
        alone = {id(room): rough(self._work, ((room, room.node, 1),)) for room in usable}
        first = min(usable, key=lambda room: (*alone[id(room)].order[:2], -room.now, room.node.name))
        gang = [room for room in usable if not room.lone]
        most = min(gang, key=lambda room: (self._seconds[id(room)] / room.now, room.node.name), default=first)
        return [alone[at] for at in dict.fromkeys((id(first), id(most)))]

    def _grown(self, start: Candidate, most: int) -> Iterator[Candidate]:
        found = start
        yield found
        while found.workers < most and not start.taken[0][0].lone:
            more = [rough(self._work, taken) for taken in self._one_step(found.taken, most - found.workers)]
            if not more:
                return
            found = min(more, key=lambda c: (*c.order[:2], -c.taken[-1][0].now, c.order[4]))
            yield found

    def _one_step(self, taken: Taken, left: int) -> Iterator[Taken]:
        """More workers on a node that is taken, or another node whole: of the kinds that promise most."""
        bulk = min(left, max(1, sum(number for _, _, number in taken) // BULK))
        seen: set[int] = set()
        for at, (room, node, number) in enumerate(taken):
            if number < room.now and id(room) not in seen:
                seen.add(id(room))
                yield (*taken[:at], (room, node, min(room.now, number + bulk)), *taken[at + 1 :])
        mine = {node.id for _, node, _ in taken}
        for room, node in self._promising(mine):
            yield (*taken, *_whole(room, node, mine, bulk, left))

    def _promising(self, mine: set[str]) -> Iterator[tuple[Room, Node]]:
        """Nodes that are not taken: of the quickest and the roomiest kinds, and those with the best links."""
        gang = [room for room in self._rooms if not room.lone]
        free = [(room, node) for room in gang if (node := next((n for n in room.nodes if n.id not in mine), None))]
        quick = nsmallest(LOOKED_AT, free, key=lambda pair: (self._seconds[id(pair[0])], -pair[0].now, pair[1].name))
        roomy = nsmallest(LOOKED_AT, free, key=lambda pair: (-pair[0].now, self._seconds[id(pair[0])], pair[1].name))
        near = [self._linked[name] for name in self._neighbours(mine) if name in self._linked]
        rates = {node.id: self._rate(node.id, mine) for _, node in near}
        near = nsmallest(LOOKED_AT, near, key=lambda pair: (-rates[pair[1].id], -pair[0].now, pair[1].name))
        yield from {node.id: (room, node) for room, node in (*quick, *roomy, *near)}.values()

    def _neighbours(self, mine: set[str]) -> set[str]:
        """Whoever has a measured link to one of these."""
        return {name for own in mine for name in self._work.network.near(own)} - mine

    def _rate(self, name: str, mine: set[str]) -> float:
        """Bytes/s over the slowest link to any of them."""
        return min(self._work.network.between(name, own).bytes_per_s for own in mine)


def _whole(room: Room, first: Node, mine: set[str], bulk: int, left: int) -> Taken:
    """A node with all its places; where they are few, more nodes of its kind, for so many workers in all."""
    added: list[tuple[Room, Node, int]] = [(room, first, min(room.now, left))]
    number = added[0][2]
    for node in room.nodes:
        if number >= bulk:
            break
        if node.id not in mine and node.id != first.id:
            added.append((room, node, min(room.now, left - number)))
            number += added[-1][2]
    return tuple(added)


def seconds_alone(work: Workload, room: Room) -> float:
    """Of a microbatch on one of its nodes, with all its places in use."""
    return costs(work, room.node, room.kind).cell_s * slowdown(work, room.node, room.now)


def front(work: Workload, rooms: Sequence[Room]) -> list[Room]:
    """Without kinds of nodes that are worse in all respects than one of which there are enough for every microbatch."""
    has_price = work.options.resources.max_cost is not None

    def worth(room: Room) -> tuple[float, ...]:
        return -seconds_alone(work, room), room.now, room.node.cores, -room.node.price if has_price else 0.0

    order = sorted(((worth(room), -at) for at, room in enumerate(rooms)), reverse=True)
    best: list[tuple[float, ...]] = []
    kept: list[int] = []
    for mine, at in order:
        if not any(all(a >= b for a, b in zip(other, mine, strict=True)) for other in best):
            kept.append(-at)
            room = rooms[-at]
            if not room.lone and room.now * len(room.nodes) >= work.options.microbatches:
                best.append(mine)
    return [rooms[at] for at in sorted(kept)]
