"""What several commands share: their options, the client, this user's data folder."""

from __future__ import annotations

import importlib.util
import math
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paceline.errors import PacelineError

if TYPE_CHECKING:
    from paceline.client.client import Client

NODE_PARTS = ("alembic", "fastapi", "psutil", "sqlalchemy", "structlog", "torch", "uvicorn", "websockets")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `paceline jobs` shows it.")]
Folder = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Where the state is kept.", show_default="~/.local/share/paceline"),
]
Cores = Annotated[int | None, typer.Option(min=1, help="Offer this many cores.", show_default="all of the machine's")]


def _finite(price: float) -> float:
    if not math.isfinite(price):
        raise typer.BadParameter(f"{price} is no price.")
    return price


Price = Annotated[
    float, typer.Option(min=0.0, callback=_finite, help="What an hour of this machine costs, in any one currency.")
]


def _certificate(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise typer.BadParameter(f"{path} holds no certificate.") from None
    return path


def pem(text: str) -> Any:
    """An option that names a file with certificates or a key."""
    return typer.Option(exists=True, dir_okay=False, resolve_path=True, help=text)


def trusted(text: str) -> Any:
    """An option that names a file with the certificates to trust."""
    return typer.Option(exists=True, dir_okay=False, resolve_path=True, callback=_certificate, help=text)


def connect(local: bool = False) -> Client:
    """A client of the known master, or of an embedded one."""
    from paceline.client.client import Client

    if local:
        require_node_parts()
    return Client(local=local)


def data_folder() -> Path:
    """Where masters and nodes of this user keep their state."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "paceline"


def missing_node_parts() -> list[str]:
    return [name for name in NODE_PARTS if importlib.util.find_spec(name) is None]


def require_node_parts() -> None:
    """Raise PacelineError where only the light client is installed."""
    missing = missing_node_parts()
    if missing:
        raise PacelineError(
            f"this is the light client: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.",
            "Run `pip install 'paceline[node]'`.",
        )
