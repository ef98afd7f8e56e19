"""What the master knows that plans build on, in one place: what was learned of kinds of jobs, kept in the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from paceline.master.profiles import kind_of, with_memory
from paceline.master.states import Learn
from paceline.master.store import Store
from paceline.measured import Measured, Profile
from paceline.plan import Node, Plan
from paceline.planner.planner import plan_workers
from paceline.spec import Submission


class Knowledge:
    """In memory; the store has it too, written with what taught it."""

    def __init__(self, store: Store) -> None:
        self._profiles: defaultdict[str, dict[tuple[str, str], Profile]] = defaultdict(dict)
        for kind, profile in store.profiles():
            self.note(Learn(kind, profile))

    def note(self, learned: Learn) -> None:
        profile = learned.profile
        self._profiles[learned.kind][profile.hardware_class, profile.device] = profile

    def of(self, submission: Submission) -> Measured:
        """All that was measured for such a job."""
        return Measured(profiles=tuple(self._profiles.get(kind_of(submission), {}).values()))


def plan_by(
    known: Measured,
    nodes: Sequence[Node],
    submission: Submission,
    wish: int | None = None,
    hardware_class: str | None = None,
) -> Plan:
    """The planner's decision by what is known. Raises Unplaceable."""
    options = with_memory(submission.options, known.profiles)
    return plan_workers(nodes, options, submission.facts, wish, hardware_class, known=known)
