"""The entry point: all commands, and how an error leaves the program."""

from __future__ import annotations

import contextlib
import sys
from itertools import takewhile
from typing import Annotated

import typer

from paceline.cli import cluster, doctor, jobs, run, tokens, train, up
from paceline.cli.output import show, show_error
from paceline.errors import PacelineError

USAGE_EXIT_CODE = 2
COMMANDS = {
    "Jobs": (
        train.train, train.plan, run.run, jobs.jobs, jobs.job, jobs.logs, jobs.scale, jobs.cancel, jobs.model,
        run.output,
    ),
    "Cluster": (up.up, cluster.join, cluster.login, cluster.nodes, cluster.drain, tokens.tokens, doctor.doctor),
}  # fmt: skip

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
for panel, commands in COMMANDS.items():
    for command in commands:
        # behind the script's name everything is the script's, as with torchrun
        settings = {"allow_interspersed_args": command is not run.run}
        app.command(rich_help_panel=panel, context_settings=settings)(command)


def _version(wanted: bool) -> None:
    if wanted:
        from paceline.versions import here

        typer.echo(here().paceline)
        raise typer.Exit()


@app.callback()
def paceline(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hand a model to a cluster, get it back trained."""


def main() -> None:
    """Run the command line. Every PacelineError ends as fact and remedy, with its own exit code."""
    as_json = "--json" in takewhile(lambda argument: argument != "--", sys.argv[1:])
    try:
        sys.exit(_run_for_programs() if as_json else app())
    except PacelineError as error:
        show_error(as_json, error)
        sys.exit(error.exit_code)


def _run_for_programs() -> int:
    """stdout carries the one document; whatever else is printed, by the user's file too, goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            return app(standalone_mode=False) or 0
        except Exception as error:
            if not hasattr(error, "format_message"):  # typer's way to say that the command line is wrong
                raise
            remedy = "See `paceline COMMAND --help`."
            usage = {"code": "usage", "fact": error.format_message(), "remedy": remedy, "details": {}}
            show(True, {"error": usage})
            return USAGE_EXIT_CODE
