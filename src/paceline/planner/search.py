"""Sets of workers worth a look: each grown from one node, by whatever is predicted to help most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from paceline.plan import Node, Prediction
from paceline.planner.exchange import UNKNOWN_LINK
from paceline.planner.predict import Slot, crew_of, predict_crew, slowdown
from paceline.planner.profiles import Workload, costs
from paceline.planner.rooms import Room
from paceline.shares import Share, quickest, split_by_speed

LOOKED_AT = 4  # nodes of a room whose links are compared; those with measured ones come first
STARTS = 2
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
    def order(self) -> tuple[float, float, int, float, tuple[str, ...]]:
        """Least time first; then few workers, a low price, names."""
        price = sum(node.price for _, node, _ in self.taken)
        names = tuple(node.name for _, node, _ in self.taken)
        return self.predicted.finish_s or 0.0, self.predicted.step_s, self.workers, price, names


class Search:
    """Over nodes that may train together."""

    def __init__(self, work: Workload, rooms: Sequence[Room]) -> None:
        self._work = work
        linked = {end for link in work.known.links for end in link.ends}
        self._rooms = _undominated(work, [room for room in rooms if room.now], linked)
        self._nodes = [
            [n for n in room.nodes if n.id in linked] + [n for n in room.nodes if n.id not in linked]
            for room in self._rooms
        ]
        self.most = sum(room.now * len(room.nodes) for room in rooms if not room.lone)

    def by_number(self, least: int, most: int) -> dict[int, Candidate]:
        """The best found, by their number of workers, with a rough split of the grid."""
        best: dict[int, Candidate] = {}
        for start in self._starts(least, most):
            leading: Candidate | None = None
            for found in self._grown(start, most):
                if found.workers >= least and (found.workers not in best or found.order < best[found.workers].order):
                    best[found.workers] = found
                if leading is None or found.order < leading.order:
                    leading = found
                if found.workers > max(HOPELESS * leading.workers, least, 2):
                    break
        return best

    def exact(self, taken: Taken) -> Candidate:
        """With the split of the grid that would be used."""
        crew = crew_of(self._work, slots_of(taken))
        shares = split_by_speed(self._work.options.microbatches, crew.cell_s)
        return Candidate(taken, tuple(crew.slots), tuple(shares), predict_crew(self._work, crew, shares))

    def _rough(self, taken: Taken) -> Candidate:
        crew = crew_of(self._work, slots_of(taken))
        counts = quickest(self._work.options.microbatches, crew.cell_s)
        shares = tuple(pairwise(accumulate(counts, initial=0)))
        return Candidate(taken, tuple(crew.slots), shares, predict_crew(self._work, crew, shares))

    def _starts(self, least: int, most: int) -> list[Taken]:
        """The node that is best alone, and the one with the most to give."""
        if not self._rooms:
            return []
        usable = [at for at, room in enumerate(self._rooms) if not room.lone or least <= 1]
        alone = {at: self._rough(((self._rooms[at], self._nodes[at][0], 1),)) for at in usable}
        by_time = sorted(usable, key=lambda at: (*alone[at].order[:2], -self._rooms[at].now, alone[at].order[4]))
        gang = [at for at in usable if not self._rooms[at].lone]
        by_rate = sorted(gang, key=lambda at: (-self._rooms[at].now / alone[at].predicted.step_s, alone[at].order[4]))
        chosen = dict.fromkeys((*by_time[:1], *by_rate[: STARTS - 1]))
        return [alone[at].taken for at in chosen]

    def _grown(self, start: Taken, most: int) -> Iterator[Candidate]:
        found = self._rough(start)
        yield found
        while found.workers < most and not start[0][0].lone:
            more = [self._rough(taken) for taken in self._one_step(found.taken, most - found.workers)]
            if not more:
                return
            found = min(more, key=lambda c: (*c.order[:2], -c.taken[-1][0].now, c.order[4]))
            yield found

    def _one_step(self, taken: Taken, room_left: int) -> Iterator[Taken]:
        """More workers on a node that is taken, or another node whole: one for each kind of node."""
        workers = sum(number for _, _, number in taken)
        bulk = min(room_left, max(1, workers // BULK))
        seen: set[int] = set()
        for at, (room, node, number) in enumerate(taken):
            if number < room.now and id(room) not in seen:
                seen.add(id(room))
                yield (*taken[:at], (room, node, min(room.now, number + bulk)), *taken[at + 1 :])
        names = {node.id for _, node, _ in taken}
        for room, nodes in zip(self._rooms, self._nodes, strict=True):
            if room.lone:
                continue
            free = self._nearest(nodes, names)
            added: Taken = ()
            while free and sum(number for _, _, number in added) < max(1, bulk if room.now < bulk else 1):
                left = room_left - sum(number for _, _, number in added)
                added = (*added, (room, free.pop(0), min(room.now, left)))
            if added:
                yield (*taken, *added)

    def _nearest(self, nodes: Sequence[Node], names: set[str]) -> list[Node]:
        """Untaken nodes, those with the fastest links to the taken ones first."""
        free: list[Node] = []
        for node in nodes:
            if node.id not in names:
                free.append(node)
            if len(free) == LOOKED_AT * BULK:
                break
        if not self._work.known.links:
            return free
        rates = {node.id: self._rate(node, names) for node in free}
        return sorted(free, key=lambda node: (-rates[node.id], node.name))

    def _rate(self, node: Node, names: set[str]) -> float:
        """Bytes/s over the slowest link to any of them."""
        links = (self._work.links.get((min(node.id, name), max(node.id, name)), UNKNOWN_LINK) for name in names)
        return min((link.bytes_per_s for link in links), default=UNKNOWN_LINK.bytes_per_s)


def _undominated(work: Workload, rooms: Sequence[Room], linked: set[str]) -> list[Room]:
    """Without nodes that are worse in all respects than others, of which there are enough for all the microbatches."""
    plain = {at: linked.isdisjoint(node.id for node in room.nodes) for at, room in enumerate(rooms)} if linked else {}
    costs_money = work.options.resources.max_cost is not None

    def worth(at: int) -> tuple[float, ...]:
        room = rooms[at]
        seconds = costs(work, room.node, room.kind).cell_s * slowdown(work, room.node, room.now)
        return -seconds, room.now, room.node.cores, -room.node.price if costs_money else 0.0

    worths = [worth(at) for at in range(len(rooms))]
    enough = [
        at
        for at, room in enumerate(rooms)
        if plain.get(at, True) and not room.lone and room.now * len(room.nodes) >= work.options.microbatches
    ]
    enough.sort(key=lambda at: worths[at], reverse=True)
    front: list[int] = []
    for at in enough:
        if not any(all(a >= b for a, b in zip(worths[best], worths[at], strict=True)) for best in front):
            front.append(at)
    return [
        room
        for at, room in enumerate(rooms)
        if at in front
        or not plain.get(at, True)
        or not any(all(a >= b for a, b in zip(worths[best], worths[at], strict=True)) for best in front)
    ]


def slots_of(taken: Taken) -> tuple[Slot, ...]:
    return tuple(slot for room, node, number in taken for slot in room.slots(node)[:number])
