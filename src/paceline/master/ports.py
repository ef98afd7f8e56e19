"""How fast each node's own connection is, from few measured pairs: a pair is as fast as the slower of its two ends.

True where switches carry what is connected to them; where they don't, an estimate is too high until the pair itself is
measured. Measuring all pairs of n nodes would take n(n-1)/2 bursts; this takes between n and 2n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations, starmap

from paceline.measured import Link

ALIKE = 1.25  # within it, two rates may be the same one, measured twice

MOST_PER_NODE = 2

Pair = tuple[str, str]


def pair(one: str, other: str) -> Pair:
    """The ends of a link, in their order."""
    return (one, other) if one < other else (other, one)


def next_pair(nodes: Sequence[str], links: Mapping[Pair, Link]) -> Pair | None:
    """The pair that tells most about these nodes; None once each one's own speed is known, or 2n pairs are measured.

    A node is known when a partner has shown that it could have done more: it is itself what limits their link. So
    each is measured with the fastest so far; of alike ones, with the last that was measured: as long as all pairs are
    alike they make a chain, which a few slow nodes can't slow down whole, as one in the middle of a star would. Those
    that nobody has outdone may still all have had a slow partner, and are measured with each other.
    """
    place = {node: number for number, node in enumerate(nodes)}
    among = {ends: link for ends, link in links.items() if all(end in place for end in ends)}
    if len(nodes) < 2 or len(among) >= MOST_PER_NODE * len(nodes):
        return None
    best = _best(among.values())
    if not best:
        return pair(nodes[0], nodes[1])
    outdone = _outdone(best, among)
    most = max(link.bytes_per_s for link in best.values())
    alike = [node for node in best if best[node].bytes_per_s * ALIKE >= most]
    fastest = max(alike, key=lambda node: (best[node].at, place[node]))
    open_ones = sorted((node for node in nodes if node != fastest and node not in outdone), key=best.__contains__)
    pairs = chain(((node, fastest) for node in open_ones), combinations(open_ones, 2))
    return next((ends for ends in starmap(pair, pairs) if ends not in among), None)


def estimates(nodes: Iterable[str], links: Mapping[Pair, Link]) -> list[Link]:
    """A link for each pair of these nodes that was not measured, where both ends were, with others."""
    best = _best(links.values())
    known = sorted(node for node in set(nodes) if node in best)
    return [_estimate(ends, best) for ends in combinations(known, 2) if ends not in links]


def _estimate(ends: Pair, best: Mapping[str, Link]) -> Link:
    slower = min((best[end] for end in ends), key=lambda link: link.bytes_per_s)
    failure = slower.failure and f"between {' and '.join(slower.ends)}: {slower.failure}"
    return Link(
        ends=ends,
        latency_s=max(best[end].latency_s for end in ends),
        bytes_per_s=slower.bytes_per_s,
        at=min(best[end].at for end in ends),
        failure=failure,
    )


def _best(links: Iterable[Link]) -> dict[str, Link]:
    """The fastest link of each node: what its own connection can do, at least."""
    best: dict[str, Link] = {}
    for link in links:
        for end in link.ends:
            if end not in best or link.bytes_per_s > best[end].bytes_per_s:
                best[end] = link
    return best


def _outdone(best: Mapping[str, Link], among: Mapping[Pair, Link]) -> set[str]:
    """Nodes of which a partner has shown to be faster than with them: they are what limits their link."""
    both_ways = [*among, *((other, one) for one, other in among)]
    return {one for one, other in both_ways if best[other].bytes_per_s > best[one].bytes_per_s * ALIKE}
