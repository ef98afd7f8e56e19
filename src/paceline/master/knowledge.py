"""What the master knows that plans build on, in one place: what was learned of kinds of jobs, and links."""

from __future__ import annotations

from collections import defaultdict

from paceline.master.links import Links
from paceline.master.profiles import kind_of
from paceline.master.store import Store
from paceline.measured import Measured, Profile
from paceline.script import ScriptSubmission
from paceline.spec import Submission


class Knowledge:
    """In memory; the store has the profiles too, written with what taught them."""

    def __init__(self, store: Store, links: Links) -> None:
        self.links = links
        self._profiles: defaultdict[str, dict[tuple[str, str], Profile]] = defaultdict(dict)
        for kind, profile in store.profiles():
            self.note(kind, profile)

    def note(self, kind: str, profile: Profile) -> None:
        self._profiles[kind][profile.hardware_class, profile.device] = profile

    def of(self, submission: Submission | ScriptSubmission) -> Measured:
        """All that was measured for such a job; of a script, links alone."""
        if isinstance(submission, ScriptSubmission):
            return Measured(links=self.links.known())
        profiles = self._profiles.get(kind_of(submission), {}).values()
        return Measured(profiles=tuple(profiles), links=self.links.known())
