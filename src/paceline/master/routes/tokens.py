"""Tokens of users: made, listed and revoked by the admin. The store keeps their hashes only."""

from __future__ import annotations

import secrets
import time
from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel

from paceline.errors import Conflict, NotFound
from paceline.master.context import The, allow
from paceline.master.store import ADMIN

User = Annotated[str, Path(pattern=r"^\w[\w.@-]{0,63}$")]

router = APIRouter(prefix="/tokens", tags=["tokens"], dependencies=[allow("admin")])


class TokenView(BaseModel):
    """sha256: its first 12 digits, to tell one from another."""

    user: str
    role: str
    sha256: str
    created_at: float


class NewToken(BaseModel):
    """The only time that a token is shown."""

    user: str
    token: str


@router.get("")
def tokens(master: The) -> list[TokenView]:
    """All that are good, oldest first."""
    return [
        TokenView(user=row.user, role=row.role, sha256=row.sha256[:12], created_at=row.created_at)
        for row in master.store.tokens()
    ]


@router.post("/{user}", status_code=201)
def add(master: The, user: User) -> NewToken:
    """Make one more client token for a user."""
    _refuse_admin(user)
    token = f"pl-client-{secrets.token_urlsafe(24)}"
    master.store.add_token(token, "client", time.time(), user)
    return NewToken(user=user, token=token)


@router.post("/{user}/revoke")
def revoke(master: The, user: User) -> dict[str, int]:
    """Revoke all tokens of a user; their jobs go on."""
    _refuse_admin(user)
    revoked = master.store.revoke_tokens(user)
    if not revoked:
        raise NotFound(f"there is no token of {user}.", "`paceline tokens` lists them.")
    return {"revoked": revoked}


def _refuse_admin(user: str) -> None:
    if user == ADMIN:
        raise Conflict(
            f"{ADMIN!r} is the user of the master's own tokens.",
            "To replace those, delete tokens.json in the master's folder and start the master again.",
        )
