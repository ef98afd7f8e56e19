"""`paceline up`: a master on this machine."""

from __future__ import annotations

import math
import shlex
import signal
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paceline.cli.common import Cores, Folder, Json, Price, data_folder, pem, require_node_parts, trusted
from paceline.cli.output import console, pairs, show
from paceline.errors import PacelineError
from paceline.settings import DEFAULT_PORT, MasterSettings, Quota

if TYPE_CHECKING:
    from rich.text import Text

ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what users may bind, not what we do
ON_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


def up(
    folder: Folder = None,
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 takes a free one.")] = DEFAULT_PORT,
    advertise: Annotated[str | None, typer.Option(help="The host name that others reach this master by.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="What reaches the nodes.")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster; by default, one is started.")] = None,
    cores: Cores = None,
    price: Price = 0.0,
    tls_cert: Annotated[Path | None, pem("The master's certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, pem("The certificate's key, PEM.")] = None,
    tls_ca: Annotated[Path | None, trusted("What clients and nodes check the certificate with.")] = None,
    quota: Annotated[
        list[str], typer.Option(metavar="USER=BOUNDS", help="What a user holds at most, as in alice=cores:8,jobs:2.")
    ] = [],  # noqa: B006 - typer's way
    share: Annotated[list[str], typer.Option(metavar="USER=NUMBER", help="A user's share; 1 if not given.")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Start a master on this machine. Runs until Ctrl-C."""
    require_node_parts()
    if ray_address and engine != "ray":
        raise typer.BadParameter("--ray-address goes with --engine ray.")
    if cores and engine == "ray":
        raise typer.BadParameter("--cores goes with --engine local; on Ray, nodes offer what they have.")
    _check_tls(tls_cert, tls_key, tls_ca)
    folder = (folder or data_folder()).resolve()
    settings = MasterSettings(
        folder=folder,
        host=host,
        port=port,
        advertise=advertise or (socket.gethostname() if host in ANYWHERE else None),
        engine=engine,
        ray_address=ray_address,
        cores=cores,
        price=price,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_ca=tls_ca,
        quotas={user: Quota.parse(bounds) for user, bounds in _by_user("--quota", quota).items()},
        shares={user: _number("--share", text) for user, text in _by_user("--share", share).items()},
        parent_pipe=True,
    )
    _serve(settings, json)


def _by_user(option: str, given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if any(not user or not value for user, _, value in pairs):
        raise typer.BadParameter(f"{option} is written USER=…, where * is every user who is not named.")
    return {user: value for user, _, value in pairs}


def _number(option: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"{option}: {text!r} is not a positive number.")
    return number


def _check_tls(cert: Path | None, key: Path | None, ca: Path | None) -> None:
    if cert is None and key is None and ca is None:
        return
    if cert is None or key is None:
        raise typer.BadParameter("--tls-cert and --tls-key go together, and --tls-ca with them.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError:
        raise typer.BadParameter(f"{cert} and {key} are no certificate and its key.") from None


def _serve(settings: MasterSettings, as_json: bool) -> None:
    """Run a master until a signal, or until it ends by itself."""
    from paceline.client import login
    from paceline.client.embedded import EmbeddedMaster, start_master

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop is a Ctrl-C
    try:
        process, ready = start_master(settings)
        master = EmbeddedMaster(process, ready["url"], ready["token"], None)
        try:
            ca = str(settings.tls_ca) if settings.tls_ca else None
            kept = login.save(login.Login(url=ready["url"], token=ready["token"], ca=ca))
            join = ["paceline", "join", ready["url"], "--token", ready["node_token"], *(["--ca", ca] if ca else [])]
            document = {**ready, "folder": str(settings.folder), "login": str(kept), "join": shlex.join(join)}
            show(as_json, document, _banner(settings, document))
            status = process.wait()
        finally:
            master.close()
    except KeyboardInterrupt:
        console(stderr=True).print("the master has ended; started again on its folder, it goes on with its jobs.")
        return
    raise PacelineError(
        f"the master ended by itself, with code {status}.",
        "See its messages above; started again on its folder, it goes on with its jobs.",
    )


def _banner(settings: MasterSettings, told: dict[str, str]) -> Text:
    note = None
    if settings.host in ON_THIS_MACHINE:
        note = f"only this machine reaches {settings.host}; others need --host and --tls-cert"
    elif settings.tls_ca:
        note = f"other machines need a copy of {settings.tls_ca}"
    return pairs(
        [
            ("master", f"{told['url']}  (state in {told['folder']})"),
            ("login", f"done for this user, in {told['login']}"),
            ("token", f"{told['token'][:14]}…  (whole in {settings.folder / 'tokens.json'}, for `paceline login`)"),
            ("join", told["join"]),
            ("note", note),
            ("next", "paceline train FILE"),
            ("stop", "Ctrl-C"),
        ]
    )
