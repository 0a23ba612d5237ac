"""SCAFFOLD's control variates: how they travel, and what a site keeps of them between rounds.

A client's c_i, or in its place the residual of top-k (`fl.client.residual`), lives in files
RUN/CLIENT/ROUND.safetensors of the site's state folder, one for each round that it trained in. A
round begins from the file that the server names, the last one whose change it has taken into c: a
round that is repeated therefore gives the same bytes, and one whose answer was lost is as if it had
never been.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from fl.client import site_state
from fl.client.site_state import SiteStateError
from fl.tensors import Tensors, decode, encode, require_same_layout

PREFIX = "control/"
"""What the name of a control has before its parameter's name, in a model's file."""

FORGOTTEN_SECONDS = 30 * 24 * 3600.0
"""How old what a run has left here may be: it may still be resumed."""


def split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """A model and the controls that travelled in its file.

    Args:
        tensors: A file's tensors.

    Returns:
        The model's tensors; and the controls, by parameter.
    """
    controls = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    return {name: t for name, t in tensors.items() if not name.startswith(PREFIX)}, controls


def prefixed(controls: Mapping[str, torch.Tensor]) -> Tensors:
    """Controls by the names under which they travel beside a model's tensors."""
    return {PREFIX + name: tensor for name, tensor in controls.items()}


def kept(
    run: str, client: str, version: int | None, saved: int | None, expected: Tensors
) -> Tensors:
    """A client's c_i, as it was after a round; those that nobody can ask for again are removed.

    Args:
        run: The run's id.
        client: The client's id.
        version: The last round of this client's that the server has taken in, or None.
        saved: The same at its last checkpoint, which it may go back to.
        expected: Zeros of the trainable parameters' names and shapes.

    Returns:
        c_i: `expected` itself without a version.

    Raises:
        SiteStateError: This site has no control of that round.
        TensorsError: It is damaged, or of another model.
    """
    if version is None:
        return expected
    file = _file(run, client, version)
    try:
        control = decode(file.read_bytes())
    except OSError as error:
        raise SiteStateError(
            f"what client {client} kept of round {version} cannot be read: {file} "
            f"({error.strerror}); do the site's workers share FL_SITE_STATE?"
        ) from error
    require_same_layout(expected, control)
    for other in file.parent.glob("*.safetensors"):
        if saved is not None and other.stem.isdecimal() and int(other.stem) < saved:
            other.unlink(missing_ok=True)
    return control


def keep(run: str, client: str, round_number: int, control: Tensors) -> None:
    """Keep a client's c_i, as it is after a round; what runs have left long ago is removed.

    Args:
        run: The run's id.
        client: The client's id.
        round_number: The round.
        control: c_i, by trainable parameter.

    Raises:
        SiteStateError: It cannot be written.
    """
    site_state.write(_file(run, client, round_number), encode(control), durable=True)
    long_gone = time.time() - FORGOTTEN_SECONDS
    for file in site_state.folder().glob("*/*/*.safetensors"):
        with suppress(OSError):  # another task has just removed it, or it is not ours
            if file.stat().st_mtime < long_gone:
                file.unlink()


def _file(run: str, client: str, round_number: int) -> Path:
    return site_state.path(run, client, f"{round_number}.safetensors")
