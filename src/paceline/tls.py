"""Whom connections trust: one place for the client, the agents and the workers."""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(ca: str | Path | None) -> ssl.SSLContext:
    """Trust the certificates of this file, or those of the system where it is None. Raises OSError, ssl.SSLError."""
    return ssl.create_default_context(cafile=ca)
