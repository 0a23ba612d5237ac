"""A client's training over several nodes of its worker's job.

The task starts an agent on each node by the launcher that its site names, the scheduler's own:
srun, mpiexec. It alone fetches, sends and answers to the policy; agents and ranks only train.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

from torch import nn

from fl.client import distributed, site_state
from fl.client.agent import BEAT_SECONDS, INTERFACE, SILENCE_SECONDS
from fl.client.budget import BlockEnded, Countdown
from fl.client.built import TrainingError
from fl.client.data import DataError
from fl.client.devices import DeviceError
from fl.client.distributed import EndedError, LostError
from fl.client.frozen import BaseError
from fl.client.rendezvous import Failure, Node, Pulse, Rendezvous, insist
from fl.client.request import TrainRequest
from fl.client.results import Training
from fl.client.site_code import SiteCodeError
from fl.errors import FederationError

LAUNCHER = "FL_NODE_LAUNCHER"
"""The site's command that starts a process on each of so many nodes of a job, in a shell's words:
{nodes} in it is how many, {hostfile} a file that names them."""
START_SECONDS = 300.0
"""How long nodes may take to begin."""
GRACE_SECONDS = 5.0
"""How long the others may take to end once something has failed: one may know better why."""
END_SECONDS = 10.0
"""How long the launcher may take to end what it has started, before it is killed."""
SAID = "said"
"""The file with what launcher and agents say."""
FORGOTTEN_SECONDS = 24 * 3600.0
"""How old the folder of a killed task may be before it is removed."""
TAIL = 500
"""Characters of the launcher's last words that are told."""
KINDS: dict[str, type[FederationError]] = {
    kind.__name__: kind
    for kind in (
        BaseError,
        BlockEnded,
        DataError,
        DeviceError,
        EndedError,
        LostError,
        SiteCodeError,
    )
}
"""Errors of a node that keep their type on the way to the task; others become a TrainingError."""

# The launcher is told when this task is killed, and ends what it has started. That it was told too
# early, before it could be, is seen by its parent's being another.
END_WITH_TASK = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class NodesError(FederationError):
    """This worker's job has not the nodes that were asked for, or they do not start."""


def require(nnodes: int) -> None:
    """See that a task of this site can train over so many nodes.

    Args:
        nnodes: How many.

    Raises:
        NodesError: Its site has it train on one, or its job has fewer.
    """
    words = shlex.split(os.environ.get(LAUNCHER, ""))
    if not words or INTERFACE not in os.environ:
        raise NodesError(
            f"nnodes asks for {nnodes} nodes, and tasks of this site train on one: see "
            "fl_compute_multi_node"
        )
    count = _count()
    if count is not None and count < nnodes:
        raise NodesError(
            f"nnodes asks for {nnodes} nodes, and this worker's job has {count}: see "
            "fl_compute_nodes_per_block"
        )
    if shutil.which(words[0]) is None:
        raise NodesError(f"the launcher {words[0]!r} of {LAUNCHER} is not on this node's path")


def command(nnodes: int, folder: Path) -> list[str]:
    """What starts an agent on each of so many nodes.

    Args:
        nnodes: How many.
        folder: Where they meet; the file that names them is written there.

    Returns:
        The command's words.

    Raises:
        NodesError: The launcher wants a file that names the nodes, and nothing here does.
    """
    words = shlex.split(os.environ[LAUNCHER])
    hostfile = folder / "hosts"
    if any("{hostfile}" in word for word in words):
        if not (hosts := _pbs_hosts()):
            raise NodesError(f"{LAUNCHER} wants a {{hostfile}}, and PBS_NODEFILE names no node")
        hostfile.write_text("".join(f"{host}\n" for host in hosts[:nnodes]))
    filled = [word.format(nodes=nnodes, hostfile=hostfile) for word in words]
    return [*filled, sys.executable, "-m", "fl.client.agent", str(folder)]


def _count() -> int | None:
    """Nodes of this worker's job, as its scheduler tells; None where it does not."""
    if told := os.environ.get("SLURM_JOB_NUM_NODES"):
        return int(told)
    return len(_pbs_hosts()) or None


def _pbs_hosts() -> list[str]:
    """The job's nodes, each once: PBS may name one as often as it has a processor."""
    named = os.environ.get("PBS_NODEFILE")
    return list(dict.fromkeys(Path(named).read_text().split())) if named else []


def train(
    wanted: TrainRequest,
    model: nn.Module,
    *,
    travelling: list[str],
    seed: int,
    until: float | None = None,
    on_step: Callable[[int], None] = lambda _steps: None,
) -> Training:
    """Train a model in place over `train_configs.nnodes` nodes; see `distributed.train`.

    Args:
        wanted: The request. Every rank builds its model and loads its data for itself.
        model: The model, with the weights to begin with.
        travelling: Which of its tensors are trained or otherwise change.
        seed: Decides shuffling and every draw that the model makes.
        until: Unix seconds by which training must have ended, or None.
        on_step: Told how many steps are done, now and then.

    Returns:
        What training did.

    Raises:
        NodesError: There are not so many nodes, or they do not start.
        BlockEnded: They do not start before `until`.
        TrainingError: A node, or a rank, was killed or is silent; or as `trainer.train` says.
        FederationError: What a rank raised.
    """
    nnodes = wanted.train_configs.nnodes
    require(nnodes)
    Countdown(until=until)  # raises where nothing is left
    order, weights = distributed.prepared(
        wanted, model, travelling=travelling, seed=seed, until=until
    )
    with _folder() as folder:
        meeting = Rendezvous(folder)
        insist(partial(meeting.give, order, weights), SILENCE_SECONDS)
        del weights  # they have a model's size
        with _launched(command(nnodes, folder), folder / SAID) as launcher:
            training = _await(launcher, meeting, nnodes, until, on_step)
        model.load_state_dict(insist(meeting.weights, SILENCE_SECONDS), strict=False)
    return training


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that all nodes see, as they do the site's state; those of killed tasks go."""
    parent = site_state.path("ranks")
    folder = parent / uuid4().hex
    if not site_state.is_writable("ranks"):
        raise NodesError(f"{parent} cannot be written, where the nodes would meet")
    for old in parent.iterdir():
        with suppress(OSError):  # another task removes it, too
            if time.time() - old.stat().st_mtime > FORGOTTEN_SECONDS:
                shutil.rmtree(old)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _launched(words: list[str], said: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher at work; whatever has happened, it ends what it has started."""
    with said.open("wb") as out:
        launcher = subprocess.Popen(  # noqa: S603  (the site's own command)
            [sys.executable, "-ISc", END_WITH_TASK, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C is not for it
        )
    try:
        yield launcher
    finally:
        launcher.terminate()
        try:
            launcher.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()
            launcher.wait()


def _await(
    launcher: subprocess.Popen[bytes],
    meeting: Rendezvous,
    nnodes: int,
    until: float | None,
    on_step: Callable[[int], None],
) -> Training:
    """Wait until all nodes have done; the first that fails ends all."""
    starts = START_SECONDS if until is None else min(START_SECONDS, until - time.time())
    began, pulses = time.monotonic(), [Pulse() for _ in range(nnodes)]
    nodes: dict[int, Node] = {}
    for beat in itertools.count(1):
        with suppress(OSError):  # of a file system that hangs now and then
            meeting.beat(beat)
        ended = _has_ended(launcher, BEAT_SECONDS)
        with suppress(OSError):
            nodes = meeting.nodes(nnodes)
        on_step(max((node.steps for node in nodes.values()), default=0))
        # A launcher may be stuck when all that it has started is over.
        done = len(nodes) == nnodes and all(node.ended for node in nodes.values())
        if ended or done or any(node.failure for node in nodes.values()):
            break
        _require_life(nodes, pulses, meeting)
        if len(nodes) < nnodes and time.monotonic() - began > starts:
            begun = _hosts(nodes.values()) or "none"
            late = f"of {nnodes} nodes {begun} had begun after {starts:.0f} s{_said(meeting)}"
            if starts < START_SECONDS:
                raise BlockEnded(f"this worker's block ends too soon: {late}")
            raise NodesError(late)
    return _outcome(launcher, meeting, nnodes)


def _has_ended(launcher: subprocess.Popen[bytes], seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        launcher.wait(seconds)
    return launcher.poll() is not None


def _require_life(nodes: dict[int, Node], pulses: list[Pulse], meeting: Rendezvous) -> None:
    """See that every node that has begun and not ended is heard of."""
    for number, node in nodes.items():
        if not node.ended and pulses[number].silence(node) > SILENCE_SECONDS:
            raise EndedError(
                f"nothing was heard of node {node.host} for {SILENCE_SECONDS:.0f} s{_said(meeting)}"
            )


def _outcome(launcher: subprocess.Popen[bytes], meeting: Rendezvous, nnodes: int) -> Training:
    """What training did; or what the fault was, and not what followed from it."""
    _has_ended(launcher, GRACE_SECONDS)  # by then the other nodes have said what they know
    nodes = insist(lambda: meeting.nodes(nnodes), SILENCE_SECONDS)
    failures = {node.failure.kind: node.failure for node in nodes.values() if node.failure}
    lost = failures.pop(LostError.__name__, None)
    if failures:
        raise _raised(failures.get(EndedError.__name__) or next(iter(failures.values())))
    if len(nodes) < nnodes:
        raise NodesError(f"{len(nodes)} of {nnodes} nodes began{_said(meeting)}")
    if silent := [node for node in nodes.values() if not node.ended]:
        raise EndedError(f"node {_hosts(silent)} ended without a word{_said(meeting)}")
    if lost:
        raise _raised(lost)
    return Training(**(nodes[0].training or {}))


def _raised(failure: Failure) -> FederationError:
    """A node's error, here."""
    error = KINDS.get(failure.kind, TrainingError)(failure.message)
    error.add_note(failure.traceback)  # it travels with the error
    return error


def _hosts(nodes: Iterable[Node]) -> str:
    return ", ".join(sorted(node.host for node in nodes))


def _said(meeting: Rendezvous) -> str:
    """What launcher and agents said last, for a message's end."""
    try:
        said = (meeting.folder / SAID).read_bytes()[-TAIL:].decode(errors="replace")
    except OSError:  # the fault that this is added to is the one to be told
        return ""
    return f": {' '.join(said.split())}" if said.strip() else ""
