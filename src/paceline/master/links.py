"""How far apart the nodes are: measured when somebody needs to know, a pair at a time, and kept with its age."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence

import structlog

from paceline.master.cluster import Cluster, NodeLink
from paceline.master.ports import Pair, estimates, next_pair
from paceline.measured import Link
from paceline.messages.from_agent import LinkProbed, ProbeAnswer, ProbeListening
from paceline.messages.to_agent import ListenForProbe, ProbeLink

OLD_AFTER_S = 600.0
FAILED_OLD_AFTER_S = 60.0  # an agent may have stood still for a moment
ENSURE_WITHIN_S = 4.0  # a plan waits for it; what is left then is measured for a later one
ANSWER_WITHIN_S = 8.0  # longer than an agent's own bounds: this one only passes where an agent is gone or stands still
UNREACHABLE_BYTES_PER_S = 1.0  # not 0: whoever divides by it finds a time that nobody would wait
LOOPBACK = "127."

log = structlog.get_logger("links")


class Links:
    """Kept in memory: a master that starts again measures again. A node that leaves takes its links with it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._links: dict[Pair, tuple[Link, NodeLink, NodeLink]] = {}
        self._waiting: dict[str, asyncio.Future[ProbeAnswer]] = {}
        self._turn = asyncio.Lock()  # two bursts at once would measure each other

    def measured(self) -> tuple[Link, ...]:
        """Links between nodes that are here, whatever their age, by their ends."""
        return tuple(link for _, link in sorted(self._here().items()))

    def known(self, among: Iterable[str] | None = None) -> tuple[Link, ...]:
        """What is measured, and an estimate for each other pair of these nodes (all measured ones where None).

        An estimate takes the slower of its ends' own best links, and is as old as the older of them. It exists where
        each end was measured with some node.
        """
        links = self._here()
        nodes = {end for ends in links for end in ends} if among is None else among
        return (*(link for _, link in sorted(links.items())), *estimates(nodes, links))

    async def ensure(self, nodes: Sequence[str], within_s: float = ENSURE_WITHIN_S) -> None:
        """Measure what is needed to know, or estimate, the links between these nodes, by ids; see ports.next_pair.

        A link is measured where it is unknown, or older than ten minutes; that of a node on which workers train only
        where it is unknown: a third of a second of traffic disturbs little, but it would measure what training leaves.
        After `within_s`, nothing more is begun, and the rest stays unknown.
        """
        deadline = time.monotonic() + within_s
        async with self._turn:
            while time.monotonic() < deadline:
                here = [node for node in dict.fromkeys(nodes) if self._cluster.linked(node)]
                ends = next_pair(here, self._good_enough())
                if ends is None:
                    return
                await self._measure(ends)

    def answered(self, message: ProbeAnswer) -> None:
        """From an agent. Answers that nobody waits for any more change nothing."""
        waiting = self._waiting.get(message.probe)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    # ---- inside ----

    def _here(self) -> dict[Pair, Link]:
        """Forgets those of which an end has left: the node that has its name now may be another."""
        self._links = {
            ends: kept
            for ends, kept in self._links.items()
            if all(self._cluster.linked(node.id) is node for node in kept[1:])
        }
        return {ends: link for ends, (link, *_) in self._links.items()}

    def _good_enough(self) -> dict[Pair, Link]:
        now = time.time()
        return {
            ends: link
            for ends, link in self._here().items()
            if now - link.at < (FAILED_OLD_AFTER_S if link.failure else OLD_AFTER_S)
            or any(map(self._cluster.is_busy, ends))
        }

    async def _measure(self, ends: Pair) -> None:
        one, other = (self._cluster.linked(end) for end in ends)
        if one is None or other is None:
            return  # it has left since
        if one.hello.address.startswith(LOOPBACK):  # reached from its own machine alone, but it reaches others
            one, other = other, one
        began = time.monotonic()
        found = await self._probed(one, other)
        if isinstance(found, LinkProbed):
            rate = max(found.bytes_per_s, UNREACHABLE_BYTES_PER_S)
            link = Link(ends=ends, latency_s=found.latency_s, bytes_per_s=rate, at=time.time())
        else:
            waited_s = time.monotonic() - began
            log.warning("link_failed", ends=ends, reason=found, waited_s=round(waited_s, 1))
            failure = f"{other.id} could not reach {one.id}: {found}"
            link = Link(
                ends=ends, latency_s=waited_s, bytes_per_s=UNREACHABLE_BYTES_PER_S, at=time.time(), failure=failure
            )
        self._links[ends] = (link, one, other)

    async def _probed(self, listener: NodeLink, prober: NodeLink) -> LinkProbed | str:
        """What the prober found, or why there is nothing."""
        probe, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        try:
            heard = await self._asked(listener, ListenForProbe(probe=f"{probe}.listen", secret=secret))
            if isinstance(heard, ProbeListening):
                dial = ProbeLink(probe=f"{probe}.dial", host=listener.hello.address, port=heard.port, secret=secret)
                heard = await self._asked(prober, dial)
        except TimeoutError:
            return f"no answer from an agent within {ANSWER_WITHIN_S:.0f} s"
        if isinstance(heard, ProbeListening):
            return "its agent answered what it was not asked"
        return heard if isinstance(heard, LinkProbed) else heard.reason

    async def _asked(self, node: NodeLink, order: ListenForProbe | ProbeLink) -> ProbeAnswer:
        answer: asyncio.Future[ProbeAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[order.probe] = answer
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                node.send(order)
                return await answer
        finally:
            del self._waiting[order.probe]
