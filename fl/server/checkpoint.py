"""What a run needs to go on after anything, in one file that is never half written.

The file is safetensors: the model and what the aggregator remembers as tensors, all the rest as
JSON in its metadata. A digest over the whole stands at its end. It is written beside the last one,
flushed to the disk and renamed into its place, so that after a crash at any moment there is a whole
one. Clients draw from seeds that follow from the run's seed, their names and their turns, so no
state of a random generator needs to be kept.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from fl.endpoints.base import JSONObject
from fl.errors import FederationError
from fl.server.strategies import State
from fl.tensors import (
    Data,
    Tensors,
    TensorsError,
    decode,
    digest,
    pieces,
    read_each,
    read_file,
    read_header,
)

FORMAT = "fl checkpoint 2"
DIGEST_BYTES = 32
MODEL = "model"
"""What the names of the model's tensors begin with, before a slash."""


class CheckpointError(FederationError):
    """A checkpoint cannot be written, or what is there cannot be gone on from."""


@dataclass
class SiteMemory:
    """What is kept of a site from one step to the next.

    Attributes:
        turn: Its latest training, from 1; 0 before the first.
        version: Steps that the server had taken when it sent the model for it.
        answered: Whether that training's update has arrived.
        accepted: The turn of its last update that was used, or None.
        num_samples: Samples that it said to have with that update, 0 before.
        norm: Of its last update that was used, or None.
        rejected: How many of its answers in a row were not believed.
    """

    turn: int = 0
    version: int = -1
    answered: bool = True
    accepted: int | None = None
    num_samples: int = 0
    norm: float | None = None
    rejected: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A run between two rounds.

    Attributes:
        version: Steps that the server has taken.
        weights: The global model after them.
        aggregator: What the aggregator remembers.
        scheduler: What the scheduler has learnt, JSON types.
        sites: What is kept of every site.
        outlived: References to updates that are in the model, and may not be evicted yet.
        lost: Steps that were taken and told of after this one, and never saved.
    """

    version: int
    weights: Tensors
    aggregator: State
    scheduler: dict[str, Any]
    sites: dict[str, SiteMemory]
    outlived: list[JSONObject] = field(default_factory=list)
    lost: int = 0


def save(file: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint so that it, or the one before, survives anything.

    Args:
        file: Its path.
        snapshot: What to keep.

    Raises:
        CheckpointError: The disk is full, or the file cannot be written; the last one is whole.
    """
    encoded = pieces(_tensors(snapshot), _metadata(snapshot))
    temporary = file.with_suffix(".part")
    try:
        with temporary.open("wb") as stream:
            stream.writelines(encoded)
            stream.write(bytes.fromhex(digest(*encoded)))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        _sync_folder(file.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror
        raise CheckpointError(
            f"{file}: cannot be written: {reason}; the last checkpoint is untouched"
        ) from error


def load(file: Path) -> Snapshot:
    """Read a checkpoint.

    Args:
        file: Its path.

    Returns:
        What was kept.

    Raises:
        CheckpointError: There is none, it is damaged, or it was written by another version.
    """
    try:
        content = read_file(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: there is no checkpoint: is this a run's folder?") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    encoded, written = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if digest(encoded) != written.hex():
        with suppress(TensorsError):  # another version may hash otherwise
            _require_format(file, read_header(encoded)[0].get("__metadata__", {}))
        raise CheckpointError(
            f"{file}: is torn or damaged: its {len(content)} bytes do not match their digest"
        )
    try:
        return _snapshot(decode(encoded), _read_metadata(file, encoded))
    except (TensorsError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: is no checkpoint: {error}") from error


def read_model(file: Path) -> Tensors:
    """Read the model of a checkpoint alone, in no more memory than it has and one tensor more.

    Args:
        file: Its path.

    Returns:
        The global model.

    Raises:
        CheckpointError: It cannot be read, or is damaged.
    """
    hashed = blake3()
    try:
        with file.open("rb") as stream:
            left = os.fstat(stream.fileno()).st_size - DIGEST_BYTES

            def take(count: int) -> Data:
                nonlocal left
                if not 0 <= count <= left:
                    raise TensorsError("it is torn")
                left -= count
                data = _memory(count)
                if stream.readinto(data) != count:
                    raise TensorsError("it is torn")
                hashed.update(data)
                return data

            each = ((name.partition("/"), tensor) for name, tensor in read_each(take))
            weights = {name: tensor for (kind, _, name), tensor in each if kind == MODEL}
            if stream.read() != hashed.digest():
                raise TensorsError("its bytes do not match their digest")
    except (OSError, TensorsError) as error:
        raise CheckpointError(f"{file}: the model cannot be read from it again: {error}") from error
    return weights


def _memory(size: int) -> memoryview:
    """Memory that the system has back as soon as nobody holds it; malloc may keep a model's."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return memoryview(mmap.mmap(-1, size, flags=flags) if size else bytearray())


def _tensors(snapshot: Snapshot) -> Tensors:
    """All tensors by one name each: model/NAME, aggregator/ROLE/NAME."""
    named = {f"{MODEL}/{name}": tensor for name, tensor in snapshot.weights.items()}
    for role, tensors in snapshot.aggregator.items():
        named |= {f"aggregator/{role}/{name}": tensor for name, tensor in tensors.items()}
    return named


def _metadata(snapshot: Snapshot) -> dict[str, str]:
    rest = {
        "version": snapshot.version,
        "scheduler": snapshot.scheduler,
        "sites": {name: asdict(memory) for name, memory in snapshot.sites.items()},
        "outlived": snapshot.outlived,
        # A role without tensors has no name among theirs.
        "roles": list(snapshot.aggregator),
    }
    return {"format": FORMAT, "state": json.dumps(rest)}


def _read_metadata(file: Path, encoded: memoryview) -> dict[str, Any]:
    """The JSON part; refused where another version's."""
    metadata = read_header(encoded)[0].get("__metadata__", {})
    _require_format(file, metadata)
    state: dict[str, Any] = json.loads(metadata["state"])
    return state


def _require_format(file: Path, metadata: dict[str, Any]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: was written as {metadata.get('format')!r}, this version reads {FORMAT!r}; "
            "resume with the version of fl that wrote it (versions.json names it)"
        )


def _snapshot(tensors: Tensors, rest: dict[str, Any]) -> Snapshot:
    weights: Tensors = {}
    aggregator: State = {role: {} for role in rest["roles"]}
    for name, tensor in tensors.items():
        kind, _, below = name.partition("/")
        if kind == MODEL:
            weights[below] = tensor
        else:
            role, _, below = below.partition("/")
            aggregator[role][below] = tensor
    return Snapshot(
        version=rest["version"],
        weights=weights,
        aggregator=aggregator,
        scheduler=rest["scheduler"],
        sites={name: SiteMemory(**memory) for name, memory in rest["sites"].items()},
        outlived=rest.get("outlived", []),
    )


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
