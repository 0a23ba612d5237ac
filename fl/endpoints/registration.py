"""Registering the one remote function with Globus Compute, once per client identity.

Its id goes into every endpoint's `allowed_functions`, so it has to stay the same from one
deployment to the next: it is remembered in a record, and asked for before it is believed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from globus_compute_sdk import Client
from globus_compute_sdk.errors import ComputeError
from globus_sdk import GlobusAPIError, GlobusError

from fl.endpoints.base import EndpointError
from fl.endpoints.globus import explain
from fl.endpoints.serialization import TASK_NAME, JSONOnly
from fl.errors import in_one_line


def register(record: Path, *, check: bool = False) -> dict[str, Any]:
    """Register `fl.client.task.run` unless the record's id is still good.

    Args:
        record: JSON file that remembers the id; written with its folder when it changes.
        check: Say what would happen, and change nothing.

    Returns:
        `{"function_id": str | None, "changed": bool}`; the id is None only where `check` would
        have registered anew.

    Raises:
        EndpointError: The service refused, or could not be reached.
    """
    try:
        return _register(record, check)
    except GlobusError as error:
        raise explain(error) from error
    except ComputeError as error:  # the SDK is too old for the service
        raise EndpointError(in_one_line(error)) from error


def _register(record: Path, check: bool) -> dict[str, Any]:
    client = Client()
    client.fx_serializer = JSONOnly()
    known = _read(record)
    if known and _is_registered(client, known["function_id"]):
        return {"function_id": known["function_id"], "changed": False}
    if check:
        return {"function_id": None, "changed": True}
    from fl.client.task import run  # heavy (torch): only where it is needed

    function_id = str(client.register_function(run))
    record.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: sites allow the id in it.
    temporary = record.with_name(f"{record.name}.part")
    temporary.write_text(json.dumps({**_identity(), "function_id": function_id}, indent=2) + "\n")
    temporary.replace(record)
    return {"function_id": function_id, "changed": True}


def _identity() -> dict[str, str]:
    """Whose function it is: another client or another service needs another registration."""
    return {
        "client_id": os.environ.get("GLOBUS_COMPUTE_CLIENT_ID", ""),
        "service": os.environ.get("GLOBUS_SDK_ENVIRONMENT", "production"),
        "task": TASK_NAME,
    }


def _read(record: Path) -> dict[str, str] | None:
    """The record, if it is whole and of this identity."""
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(known, dict):
        return None
    same = {key: known.get(key) for key in _identity()} == _identity()
    return known if same and "function_id" in known else None


def _is_registered(client: Client, function_id: str) -> bool:
    try:
        client.get_function(function_id)
    except GlobusAPIError as error:
        if error.http_status == 404:
            return False
        raise
    return True
