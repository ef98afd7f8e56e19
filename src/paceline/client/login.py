"""The address and token that `paceline login` keeps for this user."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from paceline.errors import InvalidSpec, MasterUnreachable, Unauthorized


class Login(BaseModel):
    """ca: the certificate to trust, where the master's is not signed by a public authority."""

    url: str
    token: str
    ca: str | None = None


def path() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "paceline" / "login.json"


def save(login: Login) -> Path:
    """Keep it, readable by this user only."""
    where = path()
    where.parent.mkdir(parents=True, exist_ok=True)
    where.unlink(missing_ok=True)
    with open(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(login.model_dump_json())
    return where


def load(master: str | None = None) -> Login:
    """PACELINE_URL and PACELINE_TOKEN where both are set, else what `paceline login` kept.

    master: the address that a token is wanted for; no other master's is ever sent there. Raises MasterUnreachable where
    none is known, and Unauthorized where it is not this one.
    """
    known = _known()
    if master is not None and (known is None or known.url != master.rstrip("/")):
        raise Unauthorized(
            f"no token is known for {master}.", f"Pass token=…, or run `paceline login {master} --token …`."
        )
    if known is None:
        raise MasterUnreachable(
            "no master is known.", "Run `paceline login URL --token …`, pass url and token, or use Client(local=True)."
        )
    return known


def _known() -> Login | None:
    url, token = os.environ.get("PACELINE_URL"), os.environ.get("PACELINE_TOKEN")
    if url and token:
        return Login(url=url.rstrip("/"), token=token, ca=os.environ.get("PACELINE_CA"))
    if not path().exists():
        return None
    try:
        return Login.model_validate_json(path().read_text())
    except ValidationError:
        raise InvalidSpec(f"{path()} is damaged.", "Run `paceline login URL --token …` again.") from None
