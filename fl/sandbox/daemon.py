"""The sandbox as a background process: start it, stop it, ask after it.

It never touches a process that is not its own: ids come round again, so start times are compared.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

import fl
from fl.sandbox.folder import Folder, SandboxError, process_records
from fl.sandbox.options import REQUEST, Options

UP_S = 45.0
DOWN_S = 15.0
ANSWER_S = 5.0


def up(folder: Folder, options: Options) -> bool:
    """Start the sandbox and return when web service, broker and relay answer.

    Returns:
        False if it was up already.

    Raises:
        SandboxError: it cannot start; nothing is left running.
    """
    folder.prepare()
    with folder.locked():
        record = folder.read(folder.record)
        if _runs(record):
            if not answers(record):
                raise SandboxError(
                    f"process {record['pid']} of {folder.path} runs but does not answer here:"
                    " take it down, or use another --dir for another network namespace"
                )
            return False
        _stop(folder)
        _start(folder, options)
        return True


def _start(folder: Folder, options: Options) -> None:
    reading, writing = os.pipe()
    environment = {
        **os.environ,
        "FL_SANDBOX_DIR": str(folder.path),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(fl.__file__).parents[1]), os.environ.get("PYTHONPATH")])
        ),
    }
    # Not as an argument, which every user of the machine sees: a broker's URL has its password.
    environment[REQUEST] = json.dumps({"options": asdict(options), "ready_fd": writing})
    with folder.append(folder.log) as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "fl.sandbox.serve"],
            cwd=folder.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    with os.fdopen(reading) as pipe:
        heard = select.select([pipe], [], [], UP_S)[0]
        word = pipe.read() if heard else f"no answer within {UP_S:.0f} s"
    if word != "ready":
        _stop(folder)
        _end(psutil.Process(child.pid) if child.poll() is None else None)
        raise SandboxError(word or f"the sandbox ended at once; see {folder.log}")


def down(folder: Folder) -> bool:
    """Stop the sandbox and its relay.

    Returns:
        False if nothing ran.

    Raises:
        SandboxError: something of it would not end.
    """
    if not folder.lock.exists():  # nothing ever ran there
        return False
    with folder.locked():
        return _stop(folder)


def _stop(folder: Folder) -> bool:
    """End what the record names, the sandbox before its relay, and drop the record."""
    records = process_records(folder.read(folder.record))
    found = [record.process() for record in records]
    for process in found:
        _end(process)
    if records:  # else it is none of ours
        folder.record.unlink(missing_ok=True)
    return any(found)


def _end(process: psutil.Process | None) -> None:
    if process is None:
        return
    # psutil compares start times before it signals, so an id that came round again is safe.
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        _, alive = psutil.wait_procs([process], timeout=DOWN_S)
        for one in alive:
            one.kill()
        if psutil.wait_procs(alive, timeout=DOWN_S)[1]:
            raise SandboxError(f"process {process.pid} would not end")


def _runs(record: dict[str, Any]) -> bool:
    records = process_records(record)
    return bool(records) and records[0].process() is not None


def answers(record: dict[str, Any]) -> bool:
    """Whether the web service answers from here."""
    with suppress(OSError, ValueError):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{record['compute']}/v2/version", timeout=ANSWER_S) as response:
            return bool(response.status == 200)
    return False


def status(folder: Folder) -> dict[str, Any]:
    """What ``service.json`` says, if the sandbox runs, and what it knows of its endpoints.

    Returns:
        Nothing if it is down; else the record, with ``parts`` (whether each answers) and
        ``endpoints`` (a list of {id, name, status}).

    Raises:
        SandboxError: it does not say what it knows of them.
    """
    record = folder.read(folder.record)
    if not _runs(record):
        return {}
    relay = process_records(record)[1:]
    parts = {
        "web service": answers(record),
        "relay": bool(relay) and relay[0].process() is not None,
    }
    return {
        **record,
        "parts": parts,
        "endpoints": _endpoints(folder, record) if parts["web service"] else [],
    }


def _endpoints(folder: Folder, record: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return _ask(folder, record)
    except (OSError, ValueError) as error:
        said = f"cannot ask the sandbox of {folder.path} for its endpoints: {error}"
        raise SandboxError(said) from error


def _ask(folder: Folder, record: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(  # noqa: S310 - the URL is our own http://localhost
        f"{record['compute']}/sandbox/endpoints",
        headers={"Authorization": f"Sandbox {folder.secrets()[0]}"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_S) as response:
        found: list[dict[str, Any]] = json.load(response)
    return found
