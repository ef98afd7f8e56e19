"""What went wrong with a script, from how it ended and what it printed last."""

from __future__ import annotations

import re
import signal

from paceline.errors import UserCodeError

TOLD_LINES = 20
TRACEBACK = "Traceback (most recent call last):"
ABORTED = "Fatal Python error: Aborted"  # what faulthandler prints before the stacks of all threads
MODULES = "Extension modules:"  # and after them
OF_RANK = re.compile(r"^\[rank\d+\]: ?")  # which torch puts before each line of an exception, once there is a group


def script_error(status: int, printed: str) -> UserCodeError:
    """status: exit code, or minus the signal's number. The traceback is the script's last, or its last lines."""
    lines = [OF_RANK.sub("", line) for line in printed.rstrip().splitlines()]
    last = "\n".join(lines[-TOLD_LINES:])
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
        return UserCodeError(
            f"the script was ended by signal {-status} ({name}).",
            "A process that the system kills may lack memory; `paceline logs` has what it printed.",
            traceback=_stacks(lines) or last,
        )
    at = _last(lines, TRACEBACK)
    if at is None:
        return UserCodeError(f"the script ended with exit code {status}.", "Its last lines follow.", traceback=last)
    end = next((i for i in range(at + 1, len(lines)) if re.match(r"\S", lines[i])), len(lines) - 1)
    raised = lines[end].split(":")[0].rsplit(".", 1)[-1]
    text = "\n".join(lines[at:]) + "\n"
    return UserCodeError(f"the script raised {lines[end]}", "Its traceback follows.", type=raised, traceback=text)


def _stacks(lines: list[str]) -> str:
    """Those of all threads, where an aborted Python has printed them."""
    at = _last(lines, ABORTED)
    if at is None:
        return ""
    return "\n".join(line for line in lines[at + 1 :] if not line.startswith(MODULES)).strip("\n")


def _last(lines: list[str], line: str) -> int | None:
    return next((at for at in reversed(range(len(lines))) if lines[at] == line), None)
