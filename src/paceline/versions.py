"""Versions that must agree between client, master and nodes, and the refusal where they do not."""

from __future__ import annotations

import platform
from importlib import metadata

from paceline.errors import VersionMismatch
from paceline.spec import Versions


def here() -> Versions:
    """This process's own; torch None where it is not installed. Imports nothing."""
    return Versions(
        paceline=metadata.version("paceline"),
        python=".".join(platform.python_version_tuple()[:2]),
        torch=_torch(),
    )


def _torch() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def check(theirs: Versions, ours: Versions, who: str) -> None:
    """Raise VersionMismatch where `who` can't work with this master.

    Code travels as bytecode, so Python must agree to the minor version; the messages are Paceline's own. torch must
    be the very build on nodes ("node"), as it decides the bits, and agree to the minor version elsewhere.
    """
    exact_torch = who.startswith("node")
    for name, their, our in (
        ("Python", theirs.python, ours.python),
        ("Paceline", theirs.paceline, ours.paceline),
        ("torch", _torch_key(theirs.torch, exact_torch), _torch_key(ours.torch, exact_torch)),
    ):
        if their != our:
            raise VersionMismatch(
                f"{who} has {name} {their or 'not installed'}; the master has {our or 'not installed'}.",
                _remedy(name, their, our),
                name=name,
                theirs=their,
                ours=our,
            )


def _remedy(name: str, theirs: str | None, ours: str | None) -> str:
    if theirs is None or ours is None:
        return f"Install {name} {ours or theirs} {'there' if ours else 'for the master'}."
    return f"Install {name} {ours} there, or start the master with {theirs}."


def _torch_key(version: str | None, exact: bool) -> str | None:
    return version if exact or version is None else ".".join(version.split("+")[0].split(".")[:2])
