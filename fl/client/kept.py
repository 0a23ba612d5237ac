"""What a site keeps of a client between rounds: SCAFFOLD's control, or the residual of top-k.

It lives in files RUN/CLIENT/ROUND.safetensors of the site's state folder, one for each round that
the client trained in. A round begins from the file that the server names, the last one whose update
it has taken in: a round that is repeated therefore gives the same bytes, and one whose answer was
lost is as if it had never been.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from fl.client import site_state
from fl.client.site_state import SiteStateError
from fl.tensors import Tensors, decode, encode, require_same_layout

FORGOTTEN_SECONDS = 30 * 24 * 3600.0
"""How old what a run has left here may be: it may still be resumed."""


def kept(
    run: str, client: str, version: int | None, saved: int | None, expected: Tensors
) -> Tensors:
    """A client's tensors as kept after a round; those that nobody can ask for again are removed.

    Args:
        run: The run's id.
        client: The client's id.
        version: The last round of this client's that the server has taken in, or None.
        saved: The same at its last checkpoint, which it may go back to.
        expected: What a client begins with; the names and shapes of all that follow.

    Returns:
        The tensors: `expected` itself without a version.

    Raises:
        SiteStateError: This site has none of that round.
        TensorsError: They are damaged, or of another model.
    """
    if version is None:
        return expected
    file = _file(run, client, version)
    try:
        tensors = decode(file.read_bytes())
    except OSError as error:
        raise SiteStateError(
            f"what client {client} kept of round {version} cannot be read: {file} "
            f"({error.strerror}); do the site's workers share FL_SITE_STATE?"
        ) from error
    require_same_layout(expected, tensors)
    for other in file.parent.glob("*.safetensors"):
        if saved is not None and other.stem.isdecimal() and int(other.stem) < saved:
            other.unlink(missing_ok=True)
    return tensors


def keep(run: str, client: str, round_number: int, tensors: Tensors) -> None:
    """Keep a client's tensors as they are after a round; what runs left long ago is removed.

    Args:
        run: The run's id.
        client: The client's id.
        round_number: The round.
        tensors: What is kept.

    Raises:
        SiteStateError: They cannot be written.
    """
    site_state.write(_file(run, client, round_number), encode(tensors), durable=True)
    long_gone = time.time() - FORGOTTEN_SECONDS
    for file in site_state.folder().glob("*/*/*.safetensors"):
        with suppress(OSError):  # another task has just removed it, or it is not ours
            if file.stat().st_mtime < long_gone:
                file.unlink()


def _file(run: str, client: str, round_number: int) -> Path:
    return site_state.path(run, client, f"{round_number}.safetensors")
