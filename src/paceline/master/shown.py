"""What a running attempt has shown of its speed, and what was made of it. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Choice = tuple[str, ...]  # node ids of a group's members, sorted


@dataclass(frozen=True)
class Shown:
    """step_s, exchange_s, rounds: of the present members and shares: a step's seconds and its exchanges' part that
    nothing hides, smoothed, and the rounds that they are from. first_s: of the group's first round, which tells what a
    change costs. enough: workers that the last decision found enough; more are taken in only where they help.
    node_cell_s: by node id, what a cell took there last. stragglers: ranks that were named.

    against, agreed: members that the last round found too many, and how many rounds in a row did.
    drops: how often members were let go. set_aside: nodes that are not asked again before a moment. measured: what a
    step took with other members, and until when that counts.
    """

    step_s: float | None = None
    exchange_s: float = 0.0
    rounds: int = 0
    first_s: float | None = None
    enough: int = 1
    node_cell_s: Mapping[str, float] = field(default_factory=dict)
    stragglers: frozenset[int] = frozenset()
    against: tuple[int, ...] = ()
    agreed: int = 0
    drops: int = 0
    set_aside: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[Choice, tuple[float, float]] = field(default_factory=dict)

    def anew(self) -> Shown:
        """For other members or shares."""
        return replace(self, step_s=None, exchange_s=0.0, rounds=0, against=(), agreed=0)
