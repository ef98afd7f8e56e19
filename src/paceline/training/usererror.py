"""An exception of the user's code, as it travels to them."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import UserCodeError

HEAD = "Traceback (most recent call last):\n"
# how torch brings what a data loader process raised: as the text of an exception of the same kind
_FROM_READER = re.compile(rf"Caught \w+ in DataLoader worker process \d+\.\nOriginal {re.escape(HEAD)}(.*)", re.DOTALL)
_FRAME = re.compile(r'(?m)^(?=  File ")')


@dataclass(frozen=True)
class _Raised:
    """frames: (file, text) of each. last: the lines below them, with kind and message. causes: what is told first."""

    kind: str
    message: str
    frames: Sequence[tuple[str, str]]
    last: str
    causes: str = ""


def user_error(error: Exception) -> UserCodeError:
    """The user's traceback, without our frames above their code; also of what one of their data loader's raised."""
    raised = _in_reader(str(error)) or _here(error)
    first = _first_of_theirs([file for file, _ in raised.frames])
    return UserCodeError(
        f"your code raised {raised.kind}: {raised.message}",
        "Its traceback follows.",
        type=raised.kind,
        traceback="".join([raised.causes, HEAD, *(text for _, text in raised.frames[first:]), raised.last]),
    )


def _here(error: Exception) -> _Raised:
    found = traceback.extract_tb(error.__traceback__)
    frames = [(frame.filename, text) for frame, text in zip(found, traceback.format_list(found), strict=True)]
    return _Raised(type(error).__name__, str(error), frames, "".join(traceback.format_exception_only(error)))


def _in_reader(text: str) -> _Raised | None:
    found = _FROM_READER.match(text)
    causes, head, own = (HEAD + found[1]).rpartition(HEAD) if found else ("", "", "")
    frames = [frame for frame in _FRAME.split(own) if frame]
    if not head or not frames:
        return None
    lines = frames[-1].splitlines(keepends=True)
    code = next((at for at, line in enumerate(lines) if not line.startswith("  ")), len(lines))
    frames[-1], last = "".join(lines[:code]), "".join(lines[code:])
    kind, _, message = last.strip().partition(": ")
    named = [(frame.split('"')[1], frame) for frame in frames]
    return _Raised(kind.rpartition(".")[2], message, named, last, causes)


def _first_of_theirs(files: Sequence[str]) -> int:
    """The first frame of their code; where there is none, of their libraries."""
    ours, installed = str(Path(__file__).parent.parent), sysconfig.get_path("purelib")
    starts = (at for skip in ((ours, installed), (ours,)) for at, file in enumerate(files) if not file.startswith(skip))
    return next(starts, 0)
