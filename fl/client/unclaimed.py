"""Updates that lie in the site's own store and that the server may never come for.

A server evicts an update once the step that it is in is safe. A run that failed, or was killed and
is never resumed, evicts nothing any more, and nobody else knows of what its last tasks put: the
site notes what it puts, and forgets in the end what is still there.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from random import SystemRandom
from uuid import uuid4

from fl.client import site_state
from fl.client.site_state import SiteStateError
from fl.transport import Ref, Store, TransportError, UnreachableError

KEPT_SECONDS = 3 * 24 * 3600.0
"""How long an update waits for its run to be resumed: over a weekend."""
LOOKED_AT = 2
"""Notes that a task looks at, of all that there are: it adds one, so that they become fewer."""


def note(update: Ref) -> None:
    """Note an update that was put into the site's own store.

    A folder that cannot be written costs the note and nothing else: the update is there.
    """
    noted = {"put_at": time.time(), "update": update.to_json()}
    try:
        file = site_state.path("updates", f"{uuid4().hex}.json")
        site_state.write(file, json.dumps(noted).encode(), durable=False)
    except SiteStateError:
        return


def evict_unclaimed(store: Store) -> None:
    """Evict the updates that were put long ago, and strike off those that the server has evicted.

    Args:
        store: Where this site's tasks put them.
    """
    folder = site_state.path("updates")
    notes = _names(folder)
    # Not by `random`, which is seeded for training.
    for name in SystemRandom().sample(notes, min(len(notes), LOOKED_AT)):
        file = folder / name
        try:
            settled = _is_settled(file, store)
        except (UnreachableError, OSError):
            continue  # the next task tries again
        except (TransportError, ValueError, KeyError, TypeError):
            settled = True  # torn, or of a store that this site has no more
        if settled:
            with suppress(OSError):  # the next task tries again
                file.unlink()


def _names(folder: Path) -> list[str]:
    """All notes."""
    try:
        names = os.listdir(folder)  # noqa: PTH208  (a path for each of many takes longer)
    except OSError:
        return []  # nothing was put yet, or nothing can be noted here
    return [name for name in names if name.endswith(".json")]


def _is_settled(file: Path, store: Store) -> bool:
    """Whether the update that a file notes is evicted, by the server or now."""
    noted = json.loads(file.read_bytes())
    update, age = Ref.from_json(noted["update"]), time.time() - noted["put_at"]
    if age < KEPT_SECONDS and store.exists(update):
        return False
    store.evict(update)  # also where the server has come to some of its parts alone
    return True
