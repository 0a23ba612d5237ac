"""The command line: `fl-run`, and `fl` with the rest. No logic lives here.

Exit codes: 0, done; 1, it failed on the way; 2, it was asked for something that cannot be meant.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click
from rich.console import Console

from fl import __version__
from fl.config import ConfigError
from fl.errors import FederationError
from fl.sandbox.cli import sandbox

FolderPath = click.Path(path_type=Path, file_okay=False)
FilePath = click.Path(path_type=Path, dir_okay=False)
P = ParamSpec("P")


def reporting(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an error that a person can put right into one line and an exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except FederationError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2 if isinstance(error, ConfigError) else 1)

    return wrapped


def federation_files(command: Callable[P, None]) -> Callable[P, None]:
    """The two files that describe a federation."""
    server = click.option("--server", type=FilePath, required=True, help="Path of server.yaml.")
    clients = click.option("--clients", type=FilePath, required=True, help="Path of clients.yaml.")
    return server(clients(command))


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Federated learning across supercomputers."""


@click.command()
@click.version_option(__version__)
@click.option("--server", type=FilePath, help="Path of server.yaml.")
@click.option("--clients", type=FilePath, help="Path of clients.yaml.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of a run to go on with, instead of the two files.",
)
@reporting
def run_main(server: Path | None, clients: Path | None, resume: Path | None) -> None:
    """Train a model over the sites of a federation.

    Writes a run folder with the final model, metrics.jsonl, checkpoints, the configuration and the
    versions. Ctrl-C ends the run after the round that goes on, a second one at once.
    """
    if resume is None and (server is None or clients is None):
        raise click.UsageError("give --server and --clients, or --resume")
    if resume is not None and (server is not None or clients is not None):
        raise click.UsageError("--resume goes on with the files that its run began with")
    from fl import run  # torch takes seconds to import: not for --help

    if resume is not None:
        outcome = run.resume(resume, Console())
    elif server is not None and clients is not None:
        outcome = run.run(server, clients, Console())
    click.echo(f"model: {outcome.model}" if outcome.model else f"stopped: {outcome.folder}")
    if outcome.accuracy is not None:
        click.echo(f"test accuracy: {outcome.accuracy:.4f}")


@main.command()
@federation_files
@click.option("--deadline", default=300.0, show_default=True, help="Seconds a worker may take.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@reporting
def health(server: Path, clients: Path, deadline: float, as_json: bool) -> None:
    """Prove, from a worker at each site, that models will reach it."""
    from fl.health import check_sites

    checks = check_sites(server, clients, deadline)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            mark = "ok" if check.ok else "FAILED"
            click.echo(f"{check.client_id:20} {check.check:10} {mark:8} {check.message}")
            if check.remedy:
                click.echo(f"{'':20} {'':10} {'':8} {check.remedy}")
    sys.exit(0 if all(check.ok for check in checks) else 1)


@main.command()
@click.option("--record", type=FilePath, required=True, help="JSON file that remembers the id.")
@click.option(
    "--environment", type=FilePath, multiple=True, help="KEY=VALUE file with credentials."
)
@click.option("--check", is_flag=True, help="Say what would happen, and change nothing.")
@reporting
def register(record: Path, environment: tuple[Path, ...], check: bool) -> None:
    """Register the one remote function with Globus Compute, once."""
    from fl.endpoints.credentials import load_environment

    load_environment(environment)
    from fl.endpoints.registration import register as register_once

    click.echo(json.dumps(register_once(record, check=check)))


@main.command()
@click.argument("folder", type=FolderPath, default="runs")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@reporting
def status(folder: Path, as_json: bool) -> None:
    """Say what a run is doing, while it goes on and after a crash.

    FOLDER is the run's, or one of runs: then it is the newest's.
    """
    from fl.history import find_run
    from fl.status import show
    from fl.status import status as read_status

    found = read_status(find_run(folder))
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        Console().print(show(found, time.time()))


@main.command()
@click.argument("folders", type=FolderPath, nargs=-1, metavar="[RUN]...")
@click.option("--out", type=FilePath, help="The file; report.html in the first run's folder.")
@reporting
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Write what a run was into one HTML file that needs nothing beside it.

    RUN is a run's folder, or one of runs: then it is the newest's, as without any it is that of
    the folder runs. Several runs are laid over each other.
    """
    from fl.history import find_run
    from fl.report.page import write_report

    runs = [find_run(folder) for folder in folders or (Path("runs"),)]
    file = out or runs[0] / "report.html"
    write_report(runs, file)
    click.echo(f"report: {file}")


main.add_command(sandbox)

if __name__ == "__main__":
    main()
