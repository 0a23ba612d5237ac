"""An environment of the peers' own, `.peers` beside this checkout's `.venv`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).with_suffix(".txt")
FOLDER = PINS.parent.parent / ".peers"


def python() -> Path:
    """The peers' Python; the first call installs them, which takes minutes.

    Raises:
        subprocess.CalledProcessError: They cannot be installed.
    """
    interpreter, ready = FOLDER / "bin" / "python", FOLDER / PINS.name
    if not ready.exists() or ready.read_text() != PINS.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", FOLDER], check=True)
        install = ["-m", "pip", "install", "--quiet", "--requirement"]
        subprocess.run([interpreter, *install, PINS], check=True)
        ready.write_text(PINS.read_text())
    return interpreter
