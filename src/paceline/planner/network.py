"""Links between nodes as predictions see them: the measured ones, and what is taken for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from paceline.measured import Link

GIGABIT = Link(ends=("", ""), latency_s=5e-4, bytes_per_s=1e8, at=0.0)  # a usual network, not a fast one


@dataclass(frozen=True)
class Network:
    """by_ends: the measured ones, by both of their ends. usual: what is taken for those that were never measured."""

    by_ends: Mapping[str, Mapping[str, Link]] = field(default_factory=dict)
    usual: Link = GIGABIT

    @classmethod
    def of(cls, measured: Sequence[Link]) -> Network:
        """The usual one is as most of the measured ones are, in the median; without any, a gigabit network's."""
        found: dict[str, dict[str, Link]] = {}
        for link in measured:
            one, other = link.ends
            found.setdefault(one, {})[other] = link
            found.setdefault(other, {})[one] = link
        usable = [link for link in measured if link.failure is None and link.bytes_per_s > 0]
        if not usable:
            return cls(found)
        values = {name: median([getattr(link, name) for link in usable]) for name in ("latency_s", "bytes_per_s")}
        return cls(found, GIGABIT.model_copy(update=values))

    def near(self, node: str) -> Mapping[str, Link]:
        """Those of one node, by their other end."""
        return self.by_ends.get(node, {})

    def between(self, one: str, other: str) -> Link:
        return self.near(one).get(other, self.usual)

    @property
    def told_usual(self) -> str:
        rate, latency = self.usual.bytes_per_s * 8 / 1e6, self.usual.latency_s * 1e3
        whose = "a usual network" if self.usual is GIGABIT else "the median of the known ones"
        return f"{rate:.0f} Mbit/s with {latency:.3g} ms, {whose}"
