"""Property tests run without hypothesis's own time limit: this machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("paceline", deadline=None, max_examples=60)
settings.load_profile("paceline")
