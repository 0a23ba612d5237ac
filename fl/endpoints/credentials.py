"""Environment files: the KEY=VALUE files that a deployment leaves for the server and its sites."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from fl.config import Federation
from fl.errors import FederationError


def prepare_environment(federation: Federation, folder: Path) -> None:
    """Make the server's credentials, folders and code known to this process.

    Args:
        federation: The configuration.
        folder: Where models and loaders are, unless a deployment says otherwise.

    Raises:
        FederationError: An environment file cannot be read.
    """
    globus = federation.server_configs.comm_configs.globus_compute_configs
    if globus is not None:
        load_environment(Path(file) for file in globus.environment_files)
    os.environ.setdefault("FL_SITE_CODE", str(folder.resolve()))


def load_environment(files: Iterable[Path]) -> None:
    """Set the variables of environment files, where the caller has not set them already.

    The Globus SDK and ProxyStore read their client credentials, service and folders from the
    environment alone. Call this before either of them is imported.

    Args:
        files: KEY=VALUE files in shell syntax, as the deployment writes them.

    Raises:
        FederationError: A file is missing, unreadable, or has a line that is not KEY=VALUE.
    """
    for file in files:
        for key, value in read_environment(file).items():
            os.environ.setdefault(key, value)


def read_environment(file: Path) -> dict[str, str]:
    """Parse one environment file.

    Args:
        file: A file of KEY=VALUE lines; `#` begins a comment, values are quoted as for a shell.

    Returns:
        Its variables.

    Raises:
        FederationError: As for `load_environment`.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FederationError(
            f"{file}: cannot be read ({error.strerror}); deploy.yml writes it"
        ) from error
    except UnicodeDecodeError as error:
        raise FederationError(f"{file}: is no text; deploy.yml writes it") from error
    variables: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        # The line itself may hold a secret: name its place, not its text.
        fault = FederationError(f"{file}:{number}: expected KEY=VALUE")
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that is not closed
            raise fault from None
        if words[:1] == ["export"]:
            words = words[1:]
        for word in words:
            key, separator, value = word.partition("=")
            if not separator or not key.isidentifier():
                raise fault
            variables[key] = value
    return variables
