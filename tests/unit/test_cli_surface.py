"""The command line's surface, pinned against docs/cli.md: commands, options with their help, exit codes.

Where it has changed on purpose, `python tests/unit/test_cli_surface.py` prints the tables for the page.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from paceline.cli.app import app
from paceline.errors import PacelineError, all_errors

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = ("torch", "ray", "fastapi", "sqlalchemy", "uvicorn", "pandas")


def heading(name: str) -> str:
    """`paceline train FILE`, as it is written above the command's options."""
    arguments = [param.metavar for param in COMMANDS[name].params if param.param_type_name == "argument"]
    return " ".join(["### `paceline", name, *arguments]) + "`"


def options_table(name: str) -> str:
    """The options but --json, which all commands have; empty where there is no other."""
    options = [param for param in COMMANDS[name].params if param.param_type_name == "option" and param.name != "json"]
    if not options:
        return ""
    lines = [f"| {', '.join(f'`{written}`' for written in option.opts)} | {option.help} |" for option in options]
    return "\n".join(["| option | what it does |", "| --- | --- |", *lines])


def exit_codes_table() -> str:
    kinds = [kind for kind in all_errors() if kind is not PacelineError]
    told = [(kind.exit_code, f"`{kind.code}`", (kind.__doc__ or "").split("\n")[0]) for kind in kinds]
    told.append((PacelineError.exit_code, f"`{PacelineError.code}`", "Anything else; a Python traceback is a bug."))
    told.append((2, "`usage`", "The command line itself is wrong; `--help` tells the options."))
    told.append((130, "", "Ctrl-C; only `up` and `join`, which are meant to be ended so, exit with 0."))
    told.sort(key=lambda line: line[0])
    lines = [f"| {exit_code} | {code} | {meaning} |" for exit_code, code, meaning in told]
    return "\n".join(["| exit code | code | when |", "| --- | --- | --- |", *lines])


def section(name: str) -> str:
    """What the page says below a command's heading."""
    after = PAGE.read_text().split(f"{heading(name)}\n")
    assert len(after) == 2, f"{PAGE.name} has no section {heading(name)!r}"
    return re.split(r"^##", after[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_page_documents_these_commands_and_no_others() -> None:
    written = re.findall(r"^### `paceline (\w+)", PAGE.read_text(), re.MULTILINE)
    assert sorted(written) == sorted(COMMANDS)
    assert set(COMMANDS) == {
        "up", "join", "login", "train", "plan", "run", "jobs", "job", "logs", "scale", "cancel", "model", "output", "nodes",
        "drain", "tokens", "doctor",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_documents_every_option_of_a_command(name: str) -> None:
    assert options_table(name) in section(name)
    assert section(name).count("\n| `-") == max(0, options_table(name).count("\n") - 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name: str) -> None:
    assert "--json" in {written for param in COMMANDS[name].params for written in param.opts}


def test_the_page_documents_every_exit_code() -> None:
    assert exit_codes_table() in PAGE.read_text()


def run_and_list_modules(*arguments: str) -> tuple[int, set[str]]:
    """(exit code, modules loaded) of a command in a fresh interpreter."""
    program = (
        "import sys\nsys.argv[0] = 'paceline'\nfrom paceline.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print('\\n', end.code, *sys.modules)"
    )
    env = {"XDG_CONFIG_HOME": "/nonexistent", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=env, timeout=60
    )
    code, *modules = done.stdout.splitlines()[-1].split()
    return int(code), set(modules)


@pytest.mark.parametrize(("arguments", "exit_code"), [(("--help",), 0), (("train", "--help"), 0), (("jobs",), 5)])
def test_a_light_command_loads_nothing_heavy(arguments: tuple[str, ...], exit_code: int) -> None:
    code, modules = run_and_list_modules(*arguments)
    assert code == exit_code
    assert not modules & set(HEAVY)


def print_tables() -> None:
    for name in COMMANDS:
        print(f"{heading(name)}\n{COMMANDS[name].help}\n\n{options_table(name)}\n")
    print(exit_codes_table())


if __name__ == "__main__":
    print_tables()
