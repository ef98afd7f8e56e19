"""The master itself: its versions, its nodes."""

from __future__ import annotations

from fastapi import APIRouter

from paceline.master.context import The, allow
from paceline.plan import Node
from paceline.spec import Versions

router = APIRouter(tags=["cluster"])


@router.get("/version", dependencies=[allow("client", "node", "worker")])
def version(master: The) -> Versions:
    """What this master runs; also tells whether a token is good."""
    return master.versions


@router.get("/nodes", dependencies=[allow("client")])
async def nodes(master: The) -> list[Node]:
    """The cluster's nodes, with what is free."""
    return master.cluster.nodes()
