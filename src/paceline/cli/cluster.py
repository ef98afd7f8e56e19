"""Commands on a cluster that has a master: add this machine, keep the login, list the nodes."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.cli.common import Cores, Folder, Json, Price, connect, data_folder, require_node_parts, trusted
from paceline.cli.output import console, gib, rows, show, si, span
from paceline.errors import Forbidden
from paceline.explain import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from paceline.measured import Link
    from paceline.plan import Node

Url = Annotated[str, typer.Argument(metavar="URL", help="The master's address, such as https://master:8470.")]
Ca = Annotated[Path | None, trusted("The certificate file to trust.")]


def join(
    url: Url,
    token: Annotated[
        str,
        typer.Option(
            help="The node token, as in the join line of `paceline up`. Where others use this machine, set "
            "`PACELINE_TOKEN` instead: a command line is everybody's to read.",
            envvar="PACELINE_TOKEN",
            show_envvar=False,
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The node's name.", show_default="the host's name")] = None,
    cores: Cores = None,
    price: Price = 0.0,
    folder: Folder = None,
    ca: Ca = None,
    json: Json = False,
) -> None:
    """Add this machine to a master's cluster. Runs until Ctrl-C."""
    require_node_parts()
    import asyncio

    from paceline.engine import facts
    from paceline.engine.agent import run_agent
    from paceline.engine.protocol import AgentArgs
    from paceline.log import configure_log

    name = name or socket.gethostname()
    _check(url, token, ca, name)
    for variable in [v for v in os.environ if v.startswith(("RAY_", "PACELINE_"))]:
        del os.environ[variable]  # secrets; the workers run other people's code in this environment
    args = AgentArgs(
        master_url=url.rstrip("/"),
        token=token,
        folder=(folder or data_folder()).resolve(),
        name=name,
        cores=cores or facts.cores(),
        price=price,
        ca=ca,
    )
    document = {"master": args.master_url, "name": args.name, "cores": args.cores, "folder": str(args.folder)}
    show(json, document, f"{args.name} offers {args.cores} cores to {args.master_url} until Ctrl-C.")
    configure_log(args.log_level)
    asyncio.run(run_agent(args))
    console(stderr=True).print(f"{args.name} has left.")


def login(
    url: Url,
    token: Annotated[str, typer.Option(help="The client token, as in the master's tokens.json.")],
    ca: Ca = None,
    json: Json = False,
) -> None:
    """Check a master's address and token, and keep them for this user."""
    from paceline.client import login as kept
    from paceline.client.client import Client

    with Client(url.rstrip("/"), token, ca=str(ca) if ca else None) as client:
        nodes, version = client.nodes(), client.get("/version")["paceline"]
    path = kept.save(kept.Login(url=url.rstrip("/"), token=token, ca=str(ca) if ca else None))
    document = {"url": client.url, "paceline": version, "nodes": len(nodes), "login": str(path)}
    show(
        json,
        document,
        f"{client.url} answers: Paceline {version}, {counted(len(nodes), 'node')}. Kept for this user in {path}.",
    )


def _check(url: str, token: str, ca: Path | None, name: str) -> None:
    """Raise what the master would refuse, and where it is not there: an agent would dial for ever."""
    from paceline import versions
    from paceline.client.client import Client
    from paceline.spec import Versions

    with Client(url.rstrip("/"), token, ca=str(ca) if ca else None) as client:
        versions.check(versions.here(), Versions.model_validate(client.get("/version")), f"node {name}")
        try:
            client.nodes()
        except Forbidden:  # what only clients may do
            return
    raise Forbidden("this is a client's token; a node joins with its own.", "Use the join line of `paceline up`.")


def nodes(
    measure: Annotated[
        bool, typer.Option("--measure", help="First measure the links that are unknown or old; takes some seconds.")
    ] = False,
    json: Json = False,
) -> None:
    """List the cluster's nodes, what is free on them, how fast they are, and the links between them."""
    with connect() as client:
        links = client.links(measure)
        found = client.nodes()
    columns = ("node", "cores free", "memory free", "devices free", "load", "speed", "price", "address")
    document = [node.model_dump(mode="json") | {"links": _links_of(node, links)} for node in found]
    table = rows(columns, map(_line, found))
    show(json, document, table, "", *_hardware_classes(found), *(_links(links) if links else []))


def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's name, as `paceline nodes` shows it.")],
    json: Json = False,
) -> None:
    """Give a node back: its workers leave as soon as others can go on. For the master's admin."""
    with connect() as client:
        client.drain(node)
    show(json, {"node": node, "draining": True}, f"{node} gets no more workers; those that it has leave.")


def _line(node: Node) -> tuple[str, ...]:
    return (
        node.id + "".join(f" ({word})" for word, holds in _marks(node).items() if holds),
        f"{node.free_cores} of {node.cores}",
        f"{node.free_memory / 2**30:.1f} of {gib(node.memory)}",
        f"{len(node.free_devices)} of {len(node.devices)}" if node.devices else "none",
        f"{node.load:.1f}",
        " + ".join(f"{known.device} {si(known.flop_per_s)}FLOP/s" for known in node.speed) or "not known yet",
        f"{node.price:g}",
        node.address,
    )


def _marks(node: Node) -> dict[str, bool]:
    return {"master": node.is_master, "draining": node.draining, "quarantined": node.quarantined is not None}


def _hardware_classes(nodes: list[Node]) -> list[str]:
    """One line for each class: its nodes compute the same bits."""
    classes = {node.hardware_class: [n.id for n in nodes if n.hardware_class == node.hardware_class] for node in nodes}
    return [f"{name}: {', '.join(ids)}" for name, ids in classes.items()]


def _links_of(node: Node, links: list[Link]) -> list[dict[str, Any]]:
    """This node's links, each by its other end."""
    return [
        {"to": next(end for end in link.ends if end != node.id), **link.model_dump(exclude={"ends"})}
        for link in links
        if node.id in link.ends
    ]


def _links(links: list[Link]) -> list[RenderableType]:
    lines = [
        (
            " - ".join(link.ends),
            "not reached" if link.failure else f"{si(link.bytes_per_s * 8)}bit/s",
            "" if link.failure else f"{link.latency_s * 1000:.2f} ms",
            f"{span(time.time() - link.at)} ago",
            link.failure or "",
        )
        for link in links
    ]
    return ["", rows(("link", "speed", "latency", "measured", ""), lines)]
