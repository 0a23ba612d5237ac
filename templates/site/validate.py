#!/usr/bin/env python3
"""Loads a file as its daemon will, before it replaces the one that runs: `validate KIND FILE`.

One line and exit code 1 where the daemon would refuse it.
"""

import json
import os
import pwd
import re
import socket
import sys
from pathlib import Path
from typing import Callable, Dict, List
from uuid import UUID

# What the kernel says when it is asked for an interface's address.
NO_SUCH_INTERFACE = re.compile(r"\[Errno (19|99)\]")


def proxystore(file: Path) -> None:
    """A ProxyStore endpoint's config.toml."""
    from proxystore.endpoint.config import EndpointConfig
    from proxystore.utils.config import load

    with file.open("rb") as stream:
        load(EndpointConfig, stream)


def relay(file: Path) -> None:
    """A relay's configuration, and that its certificate and key fit each other."""
    import ssl

    from proxystore.p2p.relay.config import RelayServingConfig

    config = RelayServingConfig.from_toml(file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(str(config.certfile), config.keyfile)
    except OSError as error:
        raise ValueError(f"{config.certfile} with {config.keyfile}: {error}") from error


def compute_config(file: Path) -> None:
    """A Globus Compute endpoint's config.yaml: the manager's own part, without an engine."""
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig
    from globus_compute_endpoint.endpoint.config.utils import load_config_yaml

    if not isinstance(load_config_yaml(file.read_text()), CoreEndpointConfig):
        raise ValueError("an engine block belongs into user_config_template.yaml.j2")


def compute_template(file: Path) -> None:
    """The template of a user endpoint: rendered as the manager does, then loaded."""
    from click import ClickException
    from globus_compute_endpoint.endpoint.config import CoreEndpointConfig, UserEndpointConfig
    from globus_compute_endpoint.endpoint.config.utils import (
        load_config_yaml,
        render_config_user_template,
    )
    from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity

    rendered = render_config_user_template(
        parent_config=CoreEndpointConfig(),
        user_config_template=file.read_text(),
        user_config_template_path=file,
        mapped_identity=MappedPosixIdentity(
            local_user_record=pwd.getpwuid(os.getuid()),
            matched_identity=UUID(int=0),
            globus_identity_candidates=[],
        ),
    )
    try:
        config = load_config_yaml(rendered)
    except ClickException as error:
        if not NO_SUCH_INTERFACE.search(error.message):
            raise
        here = ", ".join(name for _, name in socket.if_nameindex())
        raise ValueError(
            f"{error.message}: set fl_compute_interface to one of this machine's that has an"
            f" address ({here})"
        ) from error
    if not isinstance(config, UserEndpointConfig):
        raise ValueError("it has no engine block")


def compute_schema(file: Path) -> None:
    """The JSON schema of what a user may ask for."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json.loads(file.read_text()))


def compute_environment(file: Path) -> None:
    """The flat map of variables for user endpoints."""
    import yaml

    for name, value in yaml.safe_load(file.read_text()).items():
        if isinstance(value, (dict, list)):
            raise ValueError(f"{name} must be a plain value")


def policy(file: Path) -> None:
    """A site's policy, as its tasks read it."""
    from fl.client.policy import Policy
    from fl.config_files import load_section

    load_section(file, Policy)


KINDS: Dict[str, Callable[[Path], None]] = {
    "proxystore": proxystore,
    "relay": relay,
    "compute-config": compute_config,
    "compute-template": compute_template,
    "compute-schema": compute_schema,
    "compute-environment": compute_environment,
    "policy": policy,
}


def main(arguments: List[str]) -> int:
    """Load the file as the kind says."""
    if len(arguments) != 2 or arguments[0] not in KINDS:
        print(f"usage: validate {{{','.join(KINDS)}}} FILE", file=sys.stderr)
        return 2
    try:
        KINDS[arguments[0]](Path(arguments[1]))
    except Exception as error:  # whatever a loader raises, it means: do not install this file
        reason = " ".join(str(getattr(error, "message", None) or error).split())
        print(f"refused by the daemon's own loader: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
