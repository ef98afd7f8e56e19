"""The user's own exception, as the error that travels to them."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

from paceline.errors import UserCodeError


def user_error(error: Exception) -> UserCodeError:
    """The user's traceback, without our frames above their code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours, installed = str(Path(__file__).parent.parent), sysconfig.get_path("purelib")
    not_theirs = [(ours, installed), (ours,)]  # where none of the frames is theirs, those of their libraries
    starts = (i for skip in not_theirs for i, frame in enumerate(frames) if not frame.filename.startswith(skip))
    first = next(starts, 0)
    text = "".join(
        ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:]),
         *traceback.format_exception_only(error)]
    )  # fmt: skip
    return UserCodeError(
        f"your code raised {type(error).__name__}: {error}",
        "Its traceback follows.",
        type=type(error).__name__,
        traceback=text,
    )
