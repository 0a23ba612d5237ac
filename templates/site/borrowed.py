"""Prints which of its arguments are packages that this venv does not take from its base Python."""

import importlib.metadata
import sys
from pathlib import Path


def is_borrowed(name: str) -> bool:
    """Whether a distribution is there, and outside the venv."""
    try:
        where = importlib.metadata.distribution(name).locate_file("")
    except importlib.metadata.PackageNotFoundError:
        return False
    return Path(sys.prefix).resolve() not in Path(str(where)).resolve().parents


print(" ".join(name for name in sys.argv[1:] if not is_borrowed(name)), end="")
