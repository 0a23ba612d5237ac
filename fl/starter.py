"""`fl init`: a commented experiment to begin with, for a kind of model.

What it writes are the files of the folder `starters`: they run as they are, on data that packages
bring along, and their comments say where a person's own model and data go.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from fl.errors import FederationError

FORMATS = {"cnn": "npz", "mlp": "csv", "text": "txt"}
"""The kinds of model, each with the format of data files that its loader reads."""


def write_starter(folder: Path, model: str) -> list[Path]:
    """Write the files of an experiment; a folder with anything in it is left alone.

    Args:
        folder: The folder, whose name is the experiment's.
        model: A key of `FORMATS`.

    Returns:
        Paths of the files.

    Raises:
        FederationError: The folder has something in it, cannot be written, or has a name that
            cannot stand in the files.
    """
    name = folder.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise FederationError(
            f"{folder}: an experiment's name has letters, digits, _, . and - alone, and begins "
            "with a letter or a digit; take another"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FederationError(
                f"{folder} has something in it, and was left as it is; take another name"
            )
        return [_write(folder / file, text) for file, text in _texts(name, model).items()]
    except OSError as error:
        raise FederationError(
            f"{folder}: cannot be written ({error.strerror}); take another folder"
        ) from error


def _texts(name: str, model: str) -> dict[str, str]:
    starters = files("fl") / "starters"
    experiment = (starters / "experiment.yml").read_text()
    code = {file: (starters / model / file).read_text() for file in ("model.py", "data.py")}
    experiment = experiment.replace("FORMAT", FORMATS[model]).replace("EXPERIMENT", name)
    return {"experiment.yml": experiment, **code}


def _write(file: Path, text: str) -> Path:
    with file.open("x") as new:
        new.write(text)
    return file
