"""A site's folder with one daemon, which sleeps: for tests of what keeps daemons up."""

import json
import shutil
from pathlib import Path

from tests.conftest import TOP


def lay_out(folder: Path, command: list[str]) -> None:
    """Make a site's folder with one daemon."""
    for name in ("bin", "daemons", "logs"):
        (folder / name).mkdir(parents=True)
    shutil.copy(TOP / "templates/site/daemon.py", folder / "bin/daemon")
    (folder / "bin/fl-site").write_text('#!/bin/sh\nexec "$@"\n')
    for program in (folder / "bin").iterdir():
        program.chmod(0o700)
    definition = {
        "what": "the sleeper",
        "command": command,
        "restart_for": [],
        "mark": str(folder / "sleeper"),
        "pid_file": str(folder / "pid"),
        "log": str(folder / "logs/sleeper.log"),
        "other_logs": [],
        "deadline": 10,
        "known_errors": [],
    }
    (folder / "daemons/sleeper.json").write_text(json.dumps(definition))
