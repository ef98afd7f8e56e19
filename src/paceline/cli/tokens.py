"""`paceline tokens`: who may submit."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Annotated, Any

import typer

from paceline.cli.common import Json, connect
from paceline.cli.output import pairs, rows, show
from paceline.explain import counted


def tokens(
    add: Annotated[str | None, typer.Option(metavar="USER", help="Make a client token for this user.")] = None,
    revoke: Annotated[str | None, typer.Option(metavar="USER", help="Revoke all tokens of this user.")] = None,
    json: Json = False,
) -> None:
    """List the good tokens, make one for a user, or revoke a user's. For the master's admin."""
    if add and revoke:
        raise typer.BadParameter("--add and --revoke are two commands.")
    from paceline.client import login

    with connect() as client:
        if add:
            made = client.post(f"/tokens/{add}")
            trust = ["--ca", ca] if (ca := login.load().ca) else []
            line = shlex.join(["paceline", "login", client.url, "--token", made["token"], *trust])
            told = pairs([("user", add), ("token", made["token"]), ("login", line), ("note", "it is not shown again")])
            return show(json, {**made, "login": line}, told)
        if revoke:
            gone = client.post(f"/tokens/{revoke}/revoke")["revoked"]
            return show(json, {"user": revoke, "revoked": gone}, f"{counted(gone, 'token')} of {revoke} revoked.")
        found = client.get("/tokens")
    show(json, found, rows(("user", "role", "sha256", "made"), map(_line, found)))


def _line(token: dict[str, Any]) -> tuple[str, ...]:
    made = datetime.fromtimestamp(token["created_at"]).astimezone()
    return token["user"], token["role"], token["sha256"] + "…", made.strftime("%Y-%m-%d %H:%M:%S")
