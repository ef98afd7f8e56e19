"""What a running attempt has shown of its speed, and what was made of it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class SetAside:
    """A node that is not asked again before `until`, unless its job was faster with it. step_s: with it; times: so far."""

    until: float
    step_s: float
    times: int = 1


@dataclass(frozen=True)
class Shown:
    """step_s, exchange_s, rounds: of the present members and shares: a step's seconds and its exchanges' part that
    nothing hides, smoothed, and the rounds that they are from. first_s: of the group's first round, which tells what a
    change costs. enough: workers that the last decision found enough; more are taken in only where they help.
    node_cell_s: by node id, what a cell took there last. stragglers: ranks that were named. set_aside: by node id.
    """

    step_s: float | None = None
    exchange_s: float = 0.0
    rounds: int = 0
    first_s: float | None = None
    enough: int = 1
    node_cell_s: Mapping[str, float] = field(default_factory=dict)
    stragglers: frozenset[int] = frozenset()
    set_aside: Mapping[str, SetAside] = field(default_factory=dict)

    def anew(self) -> Shown:
        """For other members or shares."""
        return replace(self, step_s=None, exchange_s=0.0, rounds=0)
