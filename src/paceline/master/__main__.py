"""Start a master: `python -m paceline.master SETTINGS_JSON`. Prints one JSON line when it serves.

The order is for a fast start: the agents, which have torch to import, are on their way before the API is loaded.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from paceline.engine.protocol import AgentArgs, Engine
from paceline.errors import FolderInUse, InvalidSpec, PacelineError
from paceline.log import configure_log
from paceline.settings import MasterSettings

NODES_WITHIN_S = 60.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def lock_folder(folder: Path) -> IO[str]:
    """Hold the folder for this process. Raises FolderInUse, with the other master's process id."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = (folder / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise FolderInUse(
            f"a master (process {lock.read().strip() or 'unknown'}) already works in {folder}.",
            "Use that one, stop it, or give another --folder.",
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def bind(settings: MasterSettings) -> socket.socket:
    """Listen. Raises InvalidSpec for a public address without TLS, or one that can't be bound."""
    if settings.host not in LOOPBACK and settings.tls_cert is None:
        raise InvalidSpec(
            f"--host {settings.host} would serve tokens and models in the clear.",
            "Give --tls-cert and --tls-key (the README makes them in one line), or bind 127.0.0.1 and use a tunnel.",
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's delay off only for sockets that say they are TCP; it costs 40 ms an answer
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise InvalidSpec(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}.", "Choose another --port."
        ) from None
    listener.listen(128)
    return listener


def tokens(folder: Path) -> dict[str, str]:
    """The folder's own tokens, the admin's ("client") and the nodes', made at its first use; its owner's to read."""
    path = folder / "tokens.json"
    if not path.exists():
        made = {role: f"pl-{role}-{secrets.token_urlsafe(24)}" for role in ("client", "node")}
        part = path.with_suffix(".part")  # a full disk must not leave half of it
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(made, file)
        part.replace(path)
    found: dict[str, str] = json.loads(path.read_text())
    return found


def engine_for(settings: MasterSettings) -> Engine:
    if settings.engine == "ray":
        if settings.ray_address is None:  # a cluster of our own takes tokens; ray reads this when it is imported
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        from paceline.engine.ray import RayEngine

        return RayEngine(settings.ray_address)
    from paceline.engine.local import LocalEngine

    return LocalEngine(agents=settings.agents, cores=settings.cores)


def main() -> int:
    settings = MasterSettings.model_validate_json(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like an answer
    try:
        run(settings, answers)
    except PacelineError as error:
        answers.write(json.dumps({"error": error.to_json()}) + "\n")
        return error.exit_code
    return 0


def run(settings: MasterSettings, answers: IO[str]) -> None:
    """Serve until a signal, or the end of stdin. Writes one JSON line to `answers` when it serves."""
    lock = lock_folder(settings.folder)
    listener = bind(settings)
    url = f"{settings.scheme}://{settings.advertised_host}:{listener.getsockname()[1]}"
    held = tokens(settings.folder)
    ready = {"url": url, "token": held["client"], "node_token": held["node"]}
    args = AgentArgs(
        master_url=url,
        token=held["node"],
        folder=settings.folder,
        price=settings.price,
        blobs=settings.folder / "blobs",
        ca=settings.tls_ca,
        log_level=settings.log_level,
    )
    engine = engine_for(settings)
    try:
        engine.start(args)
        asyncio.run(_serve(settings, listener, held, lambda: answers.write(json.dumps(ready) + "\n")))
    finally:
        engine.close()
        lock.close()


async def _serve(
    settings: MasterSettings, listener: socket.socket, held: dict[str, str], tell_ready: Callable[[], object]
) -> None:
    import uvicorn

    from paceline.master.app import create_app, open_master
    from paceline.planner.queue import Policy

    configure_log(settings.log_level)
    policy = Policy(quotas=settings.quotas, shares=settings.shares, min_run_s=settings.min_run_s)
    master = open_master(settings.folder, policy, settings.log_bytes)
    master.store.own_tokens(held["client"], held["node"], time.time())
    config = uvicorn.Config(
        create_app(master),
        log_level="warning",
        access_log=False,
        ws_max_size=16 * 2**20,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=2,
    )
    config.load()
    if config.ssl is not None:
        # a ticket is nothing that the other side's websockets could read: it would wait for more inside TLS, while
        # another of its threads writes into the same connection
        config.ssl.num_tickets = 0
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    deadline = time.monotonic() + NODES_WITHIN_S
    while not serving.done() and not (server.started and len(master.cluster.nodes()) >= settings.agents):
        await asyncio.sleep(0.005)
        if time.monotonic() > deadline:
            raise PacelineError(f"no agent joined within {NODES_WITHIN_S:.0f} s.", "See its messages above.")
    tell_ready()
    if settings.parent_pipe:
        watching = asyncio.create_task(_parent_ends())
        watching.add_done_callback(lambda _: setattr(server, "should_exit", True))
    await serving


async def _parent_ends() -> None:
    """Return when stdin does: whoever started this master is gone or wants it to end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    sys.exit(main())
