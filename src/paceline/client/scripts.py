"""From a ScriptSpec, or a function, to what crosses the network."""

from __future__ import annotations

import mmap
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline.client.packaging import pack
from paceline.client.preflight import warn_of_large_captures
from paceline.client.snapshot import snapshot
from paceline.client.submission import Packed
from paceline.digest import file_sha256
from paceline.errors import InvalidSpec
from paceline.script import NO_REQUIREMENTS, ScriptSpec, ScriptSubmission, check_command, check_requirements
from paceline.versions import here

REQUIREMENTS_FILE = "requirements.txt"

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def prepare_script(spec: ScriptSpec, scratch: Path, call: Call | None = None, request_id: str | None = None) -> Packed:
    """Check and pack a script, or a call of a function. scratch: a folder for the project's tar file.

    Raises InvalidSpec and Unpicklable before anything is sent.
    """
    blobs: dict[str, Any] = {}
    project = function = None
    if call is None:
        if spec.workdir is None:
            raise InvalidSpec("workdir=None holds no script.", "Give the folder that the script is started in.")
        check_command(spec.command, spec.workdir)
    else:
        if spec.command:
            raise InvalidSpec("both a function and command= were given.", "Leave command= out, or use client.run.")
        warn_of_large_captures(call[0], "the function")
        package = pack(call, "call")
        function, blobs = package.ref, dict(package.blobs)
    requirements = _requirements(spec)
    if spec.workdir is not None:
        archive = scratch / f"{uuid.uuid4().hex}.tar"
        snapshot(spec.workdir, archive)
        project = file_sha256(archive)
        with archive.open("rb") as file:
            blobs[project] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        archive.unlink()  # the map keeps the bytes
    submission = ScriptSubmission(
        request_id=request_id or uuid.uuid4().hex,
        versions=here(),
        options=spec.options(requirements),
        project=project,
        function=function,
    )
    return Packed(submission, blobs)


def _requirements(spec: ScriptSpec) -> str:
    """The text of the requirements, wherever the spec has them. Raises InvalidSpec."""
    if isinstance(spec.requirements, tuple):
        text = "\n".join(spec.requirements)
    else:
        file = (spec.workdir or Path()) / (spec.requirements or REQUIREMENTS_FILE)
        if spec.workdir is None or not file.is_file():
            if spec.requirements is not None:
                raise InvalidSpec(f"there is no requirements file {file}.", "Name it as seen from workdir=.")
            return NO_REQUIREMENTS
        text = file.read_text()
    check_requirements(text)
    return text
