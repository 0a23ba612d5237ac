"""The command line: `fl-run`, and `fl` with the rest. No logic lives here.

Exit codes: 0, done; 1, it failed on the way; 2, it was asked for something that cannot be meant;
130, Ctrl-C stopped it.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from fl import __version__
from fl.config_files import Files
from fl.console import Output
from fl.errors import INTERRUPTED, FederationError
from fl.sandbox.cli import sandbox
from fl.starter import FORMATS, write_starter

if TYPE_CHECKING:
    from fl.check import Check

FolderPath = click.Path(path_type=Path, file_okay=False)
FilePath = click.Path(path_type=Path, dir_okay=False)
NO_FILES = "give a federation's or an experiment's folder, or --server and --clients"
RESUMED = "--resume goes on with the files that its run began with"
P = ParamSpec("P")


class Seconds(click.FloatRange):
    """A time that can be waited for: no NaN, which is in every range, and no infinity."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=1e8)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See `click.ParamType.convert`."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


def reporting(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an error that a person can put right into one line and an exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # what the locale lacks ends no run
        try:
            command(*args, **kwargs)
        except FederationError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped by Ctrl-C", err=True)
            sys.exit(INTERRUPTED)

    return wrapped


def federation_files(command: Callable[Concatenate[Files | None, P], None]) -> Callable[..., None]:
    """The files that describe a federation: a folder that holds them, or each by its path."""

    @click.argument(
        "experiment",
        required=False,
        type=click.Path(path_type=Path, file_okay=False, exists=True),
    )
    @click.option("--server", type=FilePath, help="Path of server.yaml.")
    @click.option("--clients", type=FilePath, help="Path of clients.yaml.")
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Lay a value over the files', such as server_configs.num_global_epochs=20.",
    )
    @wraps(command)
    def wrapped(
        experiment: Path | None,
        server: Path | None,
        clients: Path | None,
        overrides: tuple[str, ...],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        given = experiment or server or clients or overrides
        if given and kwargs.get("resume") is not None:
            raise click.UsageError(RESUMED)
        if experiment is not None and (server or clients):
            raise click.UsageError("give an experiment's folder, or --server and --clients")
        if experiment is not None:
            command(Files.of_folder(experiment, overrides), *args, **kwargs)
        elif server is None and clients is None and not overrides:
            command(None, *args, **kwargs)
        elif server is None or clients is None:
            raise click.UsageError(NO_FILES)
        else:
            command(Files(server, clients, overrides), *args, **kwargs)

    return wrapped


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Federated learning across supercomputers."""


@click.command()
@click.version_option(__version__)
@federation_files
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of a run to go on with, instead of an experiment.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be sent where, and send nothing.")
@reporting
def run_main(files: Files | None, resume: Path | None, dry_run: bool) -> None:
    """Train a model over the sites of a federation.

    EXPERIMENT is a folder with server.yaml and clients.yaml, as a deployment writes it; or with
    an experiment.yml, whose sites are then processes of this machine.

    Writes a run folder with the final model, metrics.jsonl, checkpoints, the configuration and the
    versions. Ctrl-C ends the run after the round that goes on, a second one at once.
    """
    if resume is not None and dry_run:
        raise click.UsageError(RESUMED)
    if resume is None and files is None:
        raise click.UsageError(f"{NO_FILES}, or --resume")
    from fl import run  # torch takes seconds to import: not for --help

    output = Output()
    if resume is not None:
        outcome = run.resume(resume, output)
    elif files is not None and dry_run:
        from fl import plan

        plan.show(plan.plan(files), output)
        return
    elif files is not None:
        outcome = run.run(files, output)
    said = [f"model: {outcome.model}" if outcome.model else f"stopped: {outcome.folder}"]
    if outcome.accuracy is not None:
        said.append(f"test accuracy: {outcome.accuracy:.4f}")
    if (found := outcome.at_sites) is not None:
        said.append(f"accuracy at {len(found.sites)} sites: {found.accuracy:.4f}")
    # Not by click, which ends what nobody reads any more.
    output.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
    sys.exit(0 if outcome.model else INTERRUPTED)


@main.command()
@click.argument("folder", type=FolderPath)
@click.option(
    "--model",
    type=click.Choice(list(FORMATS)),
    required=True,
    help="For images, for tables, for text.",
)
@reporting
def init(folder: Path, model: str) -> None:
    """Write a commented experiment to begin with into a new folder."""
    for file in write_starter(folder, model):
        click.echo(f"wrote {file}")
    click.echo(
        f"your own model: {folder / 'model.py'}; your own data: {folder / 'data.py'}\n"
        f"next, at two sites that are processes of this machine: fl-run {folder}\n"
        "next, at the sites of an inventory: "
        f"ansible-playbook deploy.yml -i INVENTORY -e fl_experiment={folder.resolve()}"
    )


@main.command()
@federation_files
@click.option("--quick", is_flag=True, help="Ask only what needs no worker, and so no job.")
@click.option(
    "--deadline", default=300.0, type=Seconds(), show_default=True, help="Seconds a site may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@reporting
def check(files: Files | None, quick: bool, deadline: float, as_json: bool) -> None:
    """Find what is wrong before a queue hour is spent.

    At the server and at every site; all sites are asked at once.

    EXPERIMENT is a folder with server.yaml and clients.yaml, as a deployment writes it; or with
    an experiment.yml, whose sites are then processes of this machine.

    A worker at each site fetches the model, loads its data and does one step of training. Exit
    code 1: a check failed.
    """
    if files is None:
        raise click.UsageError(NO_FILES)
    from fl.check import check as check_all

    _show(check_all(files, deadline, quick=quick), as_json)


@main.command()
@federation_files
@click.option(
    "--deadline",
    default=300.0,
    type=Seconds(),
    show_default=True,
    help="Seconds a worker may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@reporting
def health(files: Files | None, deadline: float, as_json: bool) -> None:
    """Prove, from a worker at each site, that models will reach it."""
    if files is None:
        raise click.UsageError(NO_FILES)
    from fl.check import health as check_health

    _show(check_health(files, deadline), as_json)


def _show(checks: Iterable[Check], as_json: bool) -> None:
    from fl.check_table import show

    if as_json:
        found = list(checks)
        click.echo(json.dumps([asdict(check) for check in found]))
    else:
        found = show(checks, Output(highlight=False))
    sys.exit(0 if all(check.ok for check in found) else 1)


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


@main.group()
def audit() -> None:
    """The log that a site keeps of every task."""


@audit.command()
@click.argument("file", type=FilePath)
@click.option("--head", help="A head noted earlier: its line must still be there.")
@reporting
def verify(file: Path, head: str | None) -> None:
    """Follow an audit log's chain, and print its head: note that where the site cannot reach."""
    from fl.client.audit import verify as follow

    found = follow(file, head)
    click.echo(f"{file}: {found.lines} lines, none changed; head {found.head}")


@audit.command("show")
@click.argument("file", type=FilePath)
@click.option("--last", default=20, show_default=True, type=click.IntRange(min=1), help="Tasks.")
@reporting
def show_audit(file: Path, last: int) -> None:
    """Say what ran at a site: the last tasks, and what came of each."""
    from fl.audit_table import read_tasks, show

    tasks = read_tasks(file)
    Output().print(show(tasks[-last:]))
    click.echo(f"{len(tasks)} tasks in all; whether a line was changed, fl audit verify says")


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
        Output().print(show(found, time.time()), crop=False)


@main.command()
@click.argument("folders", type=FolderPath, nargs=-1, metavar="[RUN]...")
@click.option("--out", type=FilePath, help="The file; report.html in the first run's folder.")
@reporting
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Write what a run was into one HTML file.

    The file needs nothing beside it.

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
