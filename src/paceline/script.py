"""What a client asks to be run as it is: `ScriptSpec`, validated once, here.

`ScriptOptions` is the plain part, which the master reads; `ScriptSubmission` is the form that crosses the network.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from paceline.errors import InvalidSpec
from paceline.findings import invalid_spec
from paceline.spec import EXAMPLES, AskedResources, PackageRef, Resources, Versions
from paceline.stop import MOST_WORKERS, Count, for_callers, parse_duration

MAX_RESTARTS = 1000
HANG_TIMEOUT_S = 1800.0  # torch's own for the collectives of a process group (torch.distributed.default_pg_timeout)
LEAST_HANG_TIMEOUT_S = 10.0  # progress is seen in windows of five seconds
NO_REQUIREMENTS = ""
_OF_OTHER_FILES = re.compile(r"\s*(-r|--requirement|-c|--constraint|-e|--editable)\b|\s*\.{0,2}/")
_OURS = re.compile(r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(GROUP|ROLE|TORCHELASTIC)_.*")

RelativeFolder = Annotated[str, Field(min_length=1, max_length=1000)]


class ScriptFields(BaseModel):
    """The plain fields that a spec and its options have alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: tuple[str, ...] = ()
    outputs: RelativeFolder = "outputs"
    min_workers: Count | None = None
    max_restarts: Annotated[int, Field(ge=0, le=MAX_RESTARTS)] = 0
    hang_timeout: Annotated[float, Field(ge=LEAST_HANG_TIMEOUT_S, allow_inf_nan=False)] | None = HANG_TIMEOUT_S
    env: dict[str, str] = {}
    threads: Count = 1
    resources: AskedResources = Resources()
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    name: str | None = Field(default=None, max_length=200)

    @field_validator("outputs")
    @classmethod
    def _inside_the_project(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
            raise ValueError(f"outputs={value!r} is no folder inside the project; write e.g. 'outputs'")
        return value

    @field_validator("hang_timeout", mode="before")
    @classmethod
    def _hang_timeout_in_seconds(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    @field_validator("env")
    @classmethod
    def _leaves_the_launchers_variables(cls, value: dict[str, str]) -> dict[str, str]:
        taken = [name for name in value if _OURS.fullmatch(name)]
        if taken:
            raise ValueError(f"env= sets {', '.join(taken)}, which each rank gets from the launcher")
        return value

    @model_validator(mode="after")
    def _fewer_than_all(self) -> Self:
        if self.workers > MOST_WORKERS:
            raise InvalidSpec(
                f"workers={self.workers} were asked for; {MOST_WORKERS:,} are the most.", "Ask for fewer."
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise InvalidSpec(
                f"min_workers={self.min_workers} is more than the {self.workers} workers that were asked for.",
                "Ask for more with resources=pl.Resources(workers=…), or lower min_workers.",
            )
        return self

    @property
    def workers(self) -> int:
        """How many processes run the script: one, unless more were asked for."""
        return self.resources.workers or 1


class ScriptOptions(ScriptFields):
    """The plain part of a spec. command: empty where a function is called. requirements: the text of the file."""

    requirements: str = Field(default=NO_REQUIREMENTS, max_length=100_000)


class ScriptSpec(ScriptFields):
    """A script that works under `torchrun`, as it is.

    command: `("train.py", "--epochs", "3")`, or `("-m", "package.module", …)`, seen from `workdir`.
    workdir: the project; what git ignores in it stays here. None: there is none, for a function that needs no files.
    requirements: a file in `workdir`, or lines as in one; by default requirements.txt, where there is one. What a node
        has already is not installed again.
    outputs: the folder in the project whose files are kept, of each rank; those of one node share it.
    max_restarts: how often all ranks start anew because one of them failed. A lost node or worker does not count.
    hang_timeout: seconds, or e.g. "2h", after which a script counts as hung and as failed: no rank used the processor,
        printed or reported anything. None: never.
    env: more environment variables; the master keeps them in the clear. threads: OMP_NUM_THREADS, and cores, of a rank.
    resources: `pl.Resources(workers=4)` for four ranks; one by default. min_workers: how few may start where no more
        are free, as with torchrun's `--nnodes=1:4`; by default none but all.

    Raises InvalidSpec, with what to change.
    """

    workdir: Path | None = Path()
    requirements: str | tuple[str, ...] | None = None

    @for_callers
    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as invalid:
            raise invalid_spec(invalid, ScriptSpec.model_fields, EXAMPLES) from None

    def options(self, requirements: str) -> ScriptOptions:
        """The plain part. requirements: the text of the file."""
        return ScriptOptions(
            requirements=requirements, **{name: getattr(self, name) for name in ScriptFields.model_fields}
        )


def check_command(command: tuple[str, ...], workdir: Path) -> None:
    """Raise InvalidSpec unless the command names a script, or a module, of the project."""
    if command[:1] == ("-m",):
        if len(command) < 2:
            raise InvalidSpec("-m names no module.", "Write `-m package.module ARGS`.")
        return
    script = command[0] if command else ""
    if not script.endswith(".py"):
        raise InvalidSpec(f"{script!r} is not a Python script.", "Write `train.py ARGS`, or `-m package.module ARGS`.")
    if not (workdir / script).is_file() or not (workdir / script).resolve().is_relative_to(workdir.resolve()):
        raise InvalidSpec(f"there is no script {script} in the project {workdir}.", "Name it as seen from workdir=.")


def check_requirements(text: str) -> None:
    """Raise InvalidSpec where a line names a file, which the nodes would not find."""
    for number, line in enumerate(text.splitlines(), start=1):
        if _OF_OTHER_FILES.match(line):
            raise InvalidSpec(
                f"line {number} of the requirements, {line.strip()!r}, names a file of this machine.",
                "Write what it holds into the requirements; modules of the project itself need no installation.",
            )


class ScriptSubmission(BaseModel):
    """A script, or a function, as it crosses the network. The same `request_id` twice is one job.

    project: a tar file, as a blob. function: what `training/call.py` calls, where it is no script.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["script"] = "script"
    request_id: str = Field(min_length=1, max_length=100)
    versions: Versions
    options: ScriptOptions
    project: str | None = None
    function: PackageRef | None = None

    @model_validator(mode="after")
    def _something_to_run(self) -> Self:
        if bool(self.options.command) == (self.function is not None):
            raise InvalidSpec("a submission takes exactly one of a command and a function.", "Give one of them.")
        return self

    @property
    def blobs(self) -> tuple[str, ...]:
        """All that the workers need of the master."""
        return (*((self.project,) if self.project else ()), *(self.function.blobs if self.function else ()))
