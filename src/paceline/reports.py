"""How a script tells its job how far it is: one JSON line for each report, in the file that its worker reads."""

from __future__ import annotations

import json
import os
from typing import Any

from paceline.errors import InvalidSpec

REPORTS_FILE = "PACELINE_REPORTS"
MAX_VALUES = 100


def report(*, step: int | None = None, **values: Any) -> None:
    """Tell the job's watchers how far the script is: `paceline.report(step=120, loss=loss, accuracy=0.93)`.

    values: numbers, or tensors and arrays of one element. Those of the last half second are shown as one report, with
    the newest of each name. Outside a job it does nothing. Raises InvalidSpec for what is no number.
    """
    path = os.environ.get(REPORTS_FILE)
    if path is None:
        return
    line = json.dumps({"step": step, "values": {name: _number(name, value) for name, value in values.items()}})
    # one write of a short line to a file opened for appending is never torn by another process's
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode() + b"\n")
    finally:
        os.close(handle)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidSpec(
            f"{name}= of paceline.report is a {type(value).__name__}, which is no number.", "Give numbers only."
        ) from None


class ReportReader:
    """Reads what was reported since; a half-written last line waits for its other half."""

    def __init__(self) -> None:
        self._offset = 0

    def read(self, path: str) -> tuple[int | None, dict[str, float]]:
        """(the newest step, the newest value of each name) of the reports since the last call."""
        try:
            with open(path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return None, {}
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        step, values = None, {}
        for line in whole.splitlines():
            found = _parsed(line)
            step = step if found["step"] is None else found["step"]
            values.update(found["values"])
        return step, dict(list(values.items())[:MAX_VALUES])


def _parsed(line: bytes) -> dict[str, Any]:
    """A report, as far as the line is one: the user's code may write into the file too."""
    empty: dict[str, Any] = {"step": None, "values": {}}
    try:
        found = json.loads(line)
    except ValueError:
        return empty
    if not isinstance(found, dict) or not isinstance(found.get("values"), dict):
        return empty
    step = found.get("step")
    values = {str(n)[:200]: float(v) for n, v in found["values"].items() if isinstance(v, int | float)}
    return {"step": step if isinstance(step, int) and 0 <= step < 2**53 else None, "values": values}
