"""The master itself: its versions, its nodes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from paceline.master.context import The, allow
from paceline.measured import Link
from paceline.plan import Node
from paceline.spec import Versions

MEASURE_WITHIN_S = 30.0

router = APIRouter(tags=["cluster"])


@router.get("/version", dependencies=[allow("client", "node", "worker")])
def version(master: The) -> Versions:
    """What this master runs; also tells whether a token is good."""
    return master.versions


@router.post("/nodes/{node_id}/drain", status_code=204, dependencies=[allow("admin")])
async def drain(master: The, node_id: str) -> None:
    """Give a node back: it gets no more workers, and those that it has leave as soon as they can."""
    master.controller.drain(node_id)


@router.get("/nodes", dependencies=[allow("client")])
async def nodes(master: The) -> list[Node]:
    """The cluster's nodes, with what is free."""
    return master.cluster.nodes()


@router.get("/links", dependencies=[allow("client")])
async def links(master: The) -> tuple[Link, ...]:
    """The ways between nodes, as far as they were measured."""
    return master.controller.links.measured()


@router.post("/links", dependencies=[allow("client")])
async def measure_links(master: The, nodes: Annotated[list[str] | None, Body(embed=True)] = None) -> tuple[Link, ...]:
    """Measure what is unknown or old between these nodes, or all, for some seconds; then all that were measured."""
    wanted = [node.id for node in master.cluster.nodes()] if nodes is None else nodes
    await master.controller.links.ensure(wanted, MEASURE_WITHIN_S)
    return master.controller.links.measured()
