"""What the master knows that plans build on, in one place: what was learned of kinds of jobs, and links."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from paceline.master.links import Links
from paceline.master.lives import AnySubmission
from paceline.master.profiles import kind_of
from paceline.master.store import Store
from paceline.measured import Measured, Profile
from paceline.script import ScriptSubmission


class Knowledge:
    """In memory; the store has the profiles too, written with what taught them."""

    def __init__(self, store: Store, links: Links) -> None:
        self.links = links
        self._profiles: defaultdict[str, dict[tuple[str, str], Profile]] = defaultdict(dict)
        for kind, profile in store.profiles():
            self.note(kind, profile)

    def note(self, kind: str, profile: Profile) -> None:
        self._profiles[kind][profile.hardware_class, profile.device] = profile

    def of(self, submission: AnySubmission) -> Measured:
        """All that was measured for such a job; of a script, links alone."""
        return Measured(profiles=self._learned(submission), links=self.links.known())

    def of_each(self, submissions: Mapping[str, AnySubmission]) -> dict[str, Measured]:
        """The same of each, with the links looked up once for all of them."""
        links = self.links.known()
        return {name: Measured(profiles=self._learned(sent), links=links) for name, sent in submissions.items()}

    def _learned(self, submission: AnySubmission) -> tuple[Profile, ...]:
        if isinstance(submission, ScriptSubmission):
            return ()
        return tuple(self._profiles.get(kind_of(submission), {}).values())
