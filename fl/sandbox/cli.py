"""``fl sandbox``: up, down, status, env, client."""

from __future__ import annotations

import functools
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fl.sandbox import daemon
from fl.sandbox.folder import Folder, SandboxError
from fl.sandbox.options import WEB_PORT, Options

Command = Callable[..., int]


def _command(function: Command) -> Callable[..., None]:
    """Give a command its --dir, its exit code, and one line for what goes wrong."""

    @click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="FL_SANDBOX_DIR",
        default=".sandbox",
        show_default=True,
        help="Folder of this sandbox.",
    )
    @functools.wraps(function)
    def wrapped(directory: Path, **options: Any) -> None:
        try:
            code = function(Folder(directory), **options)
        except SandboxError as error:
            click.echo(f"fl sandbox: {error}", err=True)
            code = 1
        sys.exit(code)

    return wrapped


@click.group()
def sandbox() -> None:
    """A stand-in for the Globus cloud on this machine.

    For laptops and tests, never for production: it listens on loopback only, and anybody who can
    read its folder can use it. It answers for Globus Auth, the Globus Compute web service and its
    message broker, and runs a ProxyStore relay, so that the real daemons and SDKs work without an
    account or a network.
    """


@sandbox.command()
@click.option(
    "--broker",
    default="",
    metavar="URL",
    envvar="FL_SANDBOX_BROKER",
    show_envvar=True,
    help="Use a RabbitMQ (amqp://...), not the built-in broker; with a password, by the variable.",
)
@click.option(
    "--broker-port", type=click.IntRange(0, 65535), default=0, help="0: the last, or a free one."
)
@click.option(
    "--relay-port", type=click.IntRange(0, 65535), default=0, help="0: the last, or a free one."
)
@click.option(
    "--web-port",
    type=click.IntRange(1, 65535),
    default=WEB_PORT,
    hidden=True,
    help="For tests of the sandbox itself.",
)
@_command
def up(folder: Folder, **chosen: Any) -> int:
    """Start; return when everything answers."""
    options = Options(**chosen)
    if options.broker and not options.broker.startswith("amqp://"):
        raise SandboxError("--broker is not an amqp:// URL")
    started = daemon.up(folder, options)
    record = folder.read(folder.record)
    click.echo(f"{'up' if started else 'already up'}: {record['compute']} ({folder.path})")
    return 0


@sandbox.command()
@_command
def down(folder: Folder) -> int:
    """Stop everything; endpoints, functions and credentials are kept for the next start."""
    click.echo("down" if daemon.down(folder) else "was down")
    return 0


@sandbox.command()
@_command
def status(folder: Folder) -> int:
    """Say what runs. Exit code 0 if the sandbox is up, 1 if it is down."""
    found = daemon.status(folder)
    if not found:
        click.echo("down")
        return 1
    click.echo(f"up: process {found['pid']}, {folder.path}")
    for part, good in found["parts"].items():
        click.echo(f"  {part}: {'answers' if good else 'DOES NOT ANSWER'}")
    click.echo(f"  broker: {found['broker'].rpartition('@')[2].removeprefix('amqp://')}")
    for endpoint in found["endpoints"]:
        click.echo(f"  endpoint {endpoint['id']} {endpoint['name']}: {endpoint['status']}")
    return 0 if all(found["parts"].values()) else 1


@sandbox.command()
@_command
def env(folder: Folder) -> int:
    """Print the variables that point daemons and SDKs here, for ``eval "$(fl sandbox env)"``."""
    record = folder.read(folder.record)
    if not record:
        raise SandboxError(f"no sandbox is up in {folder.path}")
    variables = {
        **record["environment"],
        "GLOBUS_COMPUTE_CLIENT_ID": record["client_id"],
        "GLOBUS_COMPUTE_CLIENT_SECRET": folder.secrets()[0],
    }
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    return 0


@sandbox.command()
@click.argument("site")
@_command
def client(folder: Folder, site: str) -> int:
    """Make a client for SITE alone; inventory/sandbox.ini then gives it to that site.

    As registering another application at Globus does; print its id. It is kept like everything.
    """
    if not re.fullmatch("[A-Za-z0-9_-]+", site):
        raise SandboxError(f"{site!r} is no name of a site")
    folder.prepare()
    with folder.locked():
        made = folder.add_client(site)
    click.echo(made.client_id)
    return 0


if __name__ == "__main__":
    sandbox(prog_name="fl sandbox")
