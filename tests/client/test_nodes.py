"""A client over several nodes, each a process here: it trains what one would, and ends whole."""

import errno
import io
import json
import os
import socket
import subprocess
import sys
import time
import tracemalloc
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from fl.client import agent, devices, nodes, rendezvous
from fl.client.distributed import EndedError
from fl.client.rendezvous import Node, Rendezvous
from fl.client.results import Training
from tests.client.test_ranks import ONE, TRAP, WORKER, eventually

TWO = {**ONE, "nnodes": 2}
HOST = socket.gethostname()
LAUNCH = f"{sys.executable} {Path(__file__).with_name('launcher.py')} {{nodes}}"
SLOW = """
import time
from pathlib import Path
class Slow(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
    def forward(self, inputs):
        Path(__file__).with_name(f"at-work-{torch.distributed.get_rank()}").touch()
        time.sleep(60)
"""


@pytest.fixture
def block(site, tmp_path, monkeypatch):
    """A job of two nodes, as a site with fl_compute_multi_node has it."""
    site.state = tmp_path / "alice@ad.site, x=1"  # what a URL would have escapes for
    monkeypatch.setenv("FL_SITE_STATE", str(site.state))
    monkeypatch.setenv(nodes.LAUNCHER, LAUNCH)
    monkeypatch.setenv(agent.INTERFACE, "lo")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    return site


def processes(pid):
    """Launcher, agents and ranks below a process."""
    found = psutil.Process(pid).children(recursive=True)
    return [one for one in found if is_ours(one)]


def left(block):
    """What still runs of a site's, whoever has adopted it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FL_SITE_STATE") == str(block.state):
                found.append(process)
    return found


def is_ours(process):
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(name in words for name in ("fl.client.agent", "spawn_main", "launcher.py"))


@pytest.mark.parametrize(
    ("samples", "configs"),
    [
        (33, {"nproc_per_node": min(2, len(os.sched_getaffinity(0)))}),
        (29, {"trainer": "FedProxTrainer", "mu": 5.0}),
    ],
)
def test_two_nodes_train_what_one_does(block, samples, configs):
    """Four ranks and two, of a last minibatch that has not a sample for each."""
    settings = {
        "model": ("Linear", {}),
        "weights": block.build("Linear"),
        "data": ("load", {"n": samples}),
    }
    one = {name: value for name, value in configs.items() if name != "nproc_per_node"}
    alone = block.result(train_configs=ONE | one, **settings)
    shared = block.result(train_configs=TWO | configs, **settings)
    found = block.tensors_of(shared)
    for name, tensor in block.tensors_of(alone).items():
        torch.testing.assert_close(found[name], tensor)
    assert (shared["steps"], shared["num_samples"]) == (alone["steps"], alone["num_samples"])
    assert shared["metrics"]["train_loss"] == pytest.approx(alone["metrics"]["train_loss"])
    assert list((block.state / "ranks").iterdir()) == []
    eventually(lambda: left(block) == [], seconds=20)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("kill", f"rank 1 of 2 on {HOST} ended: SIGKILL"),
        ("raise", "the model or its loss raised ValueError: no such layer (model.py, line"),
    ],
)
def test_a_rank_that_fails_ends_the_task_and_all_others(block, how, expected):
    with (block.code / "model.py").open("a") as model:
        model.write(TRAP)
    answer = block.answer(
        model=("Trap", {"how": how}), weights=block.build("Trap", how=how), train_configs=TWO
    )
    assert expected in answer["error"]["message"]
    assert f"rank 1 of 2 on {HOST}" in answer["error"]["message"]
    assert "Traceback" in answer["error"]["traceback"]
    eventually(lambda: left(block) == [], seconds=20)


def test_an_agent_that_is_killed_is_named_by_its_node(block):
    """It cannot say so itself: its ranks go with it, and the other node's lose them."""
    with (block.code / "model.py").open("a") as model:
        model.write(
            "import os, signal\n"
            "class Orphan(nn.Linear):\n"
            "    def __init__(self):\n        super().__init__(4, 2)\n"
            "    def forward(self, inputs):\n"
            "        if torch.distributed.get_rank() == 1:\n"
            "            os.kill(os.getppid(), signal.SIGKILL)\n"
            "        return super().forward(inputs)\n"
        )
    answer = block.answer(model=("Orphan", {}), weights=block.build("Orphan"), train_configs=TWO)
    assert f"node {HOST} ended without a word" in answer["error"]["message"]
    assert "launcher: process" in answer["error"]["message"], "and in the launcher's words"
    eventually(lambda: left(block) == [], seconds=20)


@pytest.mark.parametrize("victim", ["worker", "launcher"])
def test_nothing_outlives_who_started_it(block, tmp_path, victim):
    """A task that is killed, told by the launcher; a launcher that is, by the task."""
    with (block.code / "model.py").open("a") as model:
        model.write(SLOW)
    request = tmp_path / "request.json"
    wanted = block.request(
        model=("Slow", {}), weights=block.build("Slow"), train_configs={"nnodes": 2}
    )
    request.write_text(json.dumps(wanted))
    with subprocess.Popen([sys.executable, "-c", WORKER, request]) as worker:
        try:
            eventually(lambda: len(list(block.code.glob("at-work-*"))) == 2, seconds=200)
            mine = processes(worker.pid)
            if victim == "launcher":
                next(one for one in mine if "launcher.py" in " ".join(one.cmdline())).kill()
        finally:
            if victim == "worker":
                worker.kill()
    assert len(mine) == 5, "the launcher, two agents, a rank of each"
    _, alive = psutil.wait_procs(mine, timeout=20)
    for one in alive:
        one.kill()
    assert alive == []


TRAINED = {"loss": 1.0, "steps": 3, "num_samples": 5, "stopped": "budget"}


class Hanging(Rendezvous):
    """On a file system that hangs now and then."""

    calls, works = 0, lambda call: call % 5 not in (1, 2)

    def _now(self, act, *given):
        self.calls += 1
        if not type(self).works(self.calls):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return act(*given)

    def _read(self, name):
        return self._now(super()._read, name)

    def _write(self, name, text):
        self._now(super()._write, name, text)


@pytest.fixture
def over(tmp_path, monkeypatch):
    """Where a training over two nodes has met that is over."""
    for module in (nodes, agent):
        monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(nodes, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(rendezvous, "AGAIN_SECONDS", 0.02)
    meeting = Rendezvous(tmp_path)
    meeting.beat(0)
    for number in range(2):
        meeting.say(number, Node(host="n", ended=True, training=None if number else TRAINED))
    return meeting


def awaited(meeting, command):
    with nodes._launched(command, meeting.folder / nodes.SAID) as launcher:
        trained = nodes._await(launcher, meeting, 2, None, lambda _steps: None)
    assert launcher.poll() is not None
    return trained


def test_a_launcher_that_is_stuck_keeps_no_trained_model(over):
    assert awaited(over, ["sleep", "600"]) == Training(**TRAINED)


@pytest.mark.parametrize("command", [["true"], ["sleep", "600"]])
def test_a_file_system_that_hangs_now_and_then_ends_no_training(over, command):
    assert awaited(Hanging(over.folder), command) == Training(**TRAINED)


def test_a_file_system_that_hangs_for_good_does(over, monkeypatch):
    over.say(1, Node(host="n"))
    monkeypatch.setattr(nodes, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(Hanging, "works", lambda call: call <= 3)  # a beat, and both nodes
    with pytest.raises(EndedError, match="nothing was heard of node n for 1 s"):
        awaited(Hanging(over.folder), ["sleep", "600"])


def test_a_nodes_last_word_is_said_again_where_the_file_system_hangs(over, monkeypatch):
    """That nothing was read of the task yet is no end of it, either."""
    over.say(0, Node(host="n"))
    works_at = time.monotonic() + 0.3
    monkeypatch.setattr(Hanging, "works", lambda _call: time.monotonic() > works_at)
    with agent.Life(Hanging(over.folder), 0) as life:
        life.note(training=TRAINED)
    last = over.nodes(1)[0]
    assert last.ended and last.training == TRAINED


def test_weights_are_read_into_their_own_memory(tmp_path):
    meeting = Rendezvous(tmp_path)
    meeting.hand_over({"weight": torch.zeros(1 << 20)})
    tracemalloc.start()
    try:
        weights = meeting.weights()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert weights["weight"].nbytes < most < 1.5 * weights["weight"].nbytes


def fail_once(monkeypatch, *names):
    """Let a file system fail at the first call of each of these of a rendezvous."""

    failed = set()

    def failing(name, act):
        def acted(*given):
            if name not in failed:
                failed.add(name)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return act(*given)

        return acted

    monkeypatch.setattr(rendezvous, "AGAIN_SECONDS", 0.02)
    for name in names:
        monkeypatch.setattr(Rendezvous, name, failing(name, getattr(Rendezvous, name)))


def test_an_agent_asks_again_what_a_file_system_has_failed_at(over, monkeypatch):
    seen = {}

    def train_node(_order, weights, *_, **__):
        seen.update(weights)
        return None, {}

    over.hand_over({"weight": torch.ones(2)})
    order = SimpleNamespace(wanted=SimpleNamespace(train_configs=SimpleNamespace(nnodes=2)))
    monkeypatch.setattr(Rendezvous, "order", lambda _meeting: order)
    monkeypatch.setattr(agent.distributed, "train_node", train_node)
    monkeypatch.setenv(agent.INTERFACE, "lo")
    fail_once(monkeypatch, "order", "weights")
    assert agent.main(str(over.folder)) == 0
    assert torch.equal(seen["weight"], torch.ones(2))


def test_a_task_says_again_what_is_to_be_done(block, monkeypatch):
    def look(*_):
        raise nodes.NodesError("begun")

    monkeypatch.setattr(nodes, "_await", look)
    fail_once(monkeypatch, "give")
    answer = block.answer(model=("Linear", {}), weights=block.build("Linear"), train_configs=TWO)
    assert answer["error"]["message"] == "begun"


class Failing(io.FileIO):
    """A file whose disk, or whose server, fails after the first bytes."""

    def readinto(self, memory, /):
        if self.tell() > 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(memoryview(memory)[:100])


def test_weights_that_cannot_be_read_to_their_end_are_not_trained_from(tmp_path, monkeypatch):
    meeting = Rendezvous(tmp_path)
    meeting.hand_over({"weight": torch.zeros(1 << 20)})
    monkeypatch.setattr(Path, "open", lambda path, _: io.BufferedReader(Failing(path)))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        meeting.weights()


def test_agents_end_once_nothing_is_heard_of_the_task(block, tmp_path, monkeypatch):
    """Even where the launcher cannot end them, and the task cannot say that it is gone."""
    folder = tmp_path / "meeting"
    folder.mkdir(mode=0o700)
    meeting = Rendezvous(folder)
    meeting.beat(0)
    ended = []
    monkeypatch.setattr(agent, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(agent, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(agent.os, "_exit", ended.append)
    with agent.Life(meeting, 0):
        eventually(lambda: meeting.nodes(1), seconds=5)
        for beat in range(1, 40):
            meeting.beat(beat)
            time.sleep(0.01)
        assert ended == []
        eventually(lambda: ended, seconds=5)


def test_a_node_that_is_not_heard_of_is_named(block, monkeypatch):
    """Frozen, or with its network lost: no connection breaks by it."""
    monkeypatch.setattr(nodes, "SILENCE_SECONDS", 3.0)
    with (block.code / "model.py").open("a") as model:
        model.write(SLOW.replace("time.sleep(60)", "os.kill(os.getppid(), 19); time.sleep(60)"))
        model.write("import os\n")
    answer = block.answer(model=("Slow", {}), weights=block.build("Slow"), train_configs=TWO)
    assert f"nothing was heard of node {HOST} for 3 s" in answer["error"]["message"]
    eventually(lambda: left(block) == [], seconds=20)


def test_a_set_that_is_not_the_same_everywhere_is_refused(block):
    with (block.code / "data.py").open("a") as loader:
        loader.write("import os\ndef differing():\n    return load(32 + os.getpid() % 1000)\n")
    error = block.answer(
        model=("Linear", {}),
        weights=block.build("Linear"),
        data=("differing", {}),
        train_configs=TWO,
    )["error"]
    assert "the loader gave some ranks more samples than others" in error["message"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({nodes.LAUNCHER: ""}, "nnodes asks for 3 nodes, and tasks of this site train on one"),
        ({}, "nnodes asks for 3 nodes, and this worker's job has 2"),
        ({nodes.LAUNCHER: "srunn {nodes}"}, "the launcher 'srunn' of FL_NODE_LAUNCHER is not on"),
    ],
)
def test_fewer_nodes_than_asked_for_before_anything_is_trained(
    block, monkeypatch, environment, expected
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "srunn" in expected:
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    error = block.answer(train_configs={"nnodes": 3})["error"]
    assert error["type"] == "NodesError"
    assert expected in error["message"]


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ("sh -c 'echo no such partition >&2; exit 3'", "0 of 2 nodes began: no such partition"),
        ("sh -c 'exec sleep 60'", "of 2 nodes none had begun after 1 s"),
    ],
)
def test_nodes_that_do_not_start_in_the_launchers_words(block, monkeypatch, launcher, expected):
    monkeypatch.setenv(nodes.LAUNCHER, launcher)
    monkeypatch.setattr(nodes, "START_SECONDS", 1.0)
    assert expected in block.answer(train_configs=TWO)["error"]["message"]
    eventually(lambda: left(block) == [], seconds=20)


@pytest.mark.parametrize("margin", [30.0, 1.0])
def test_that_the_block_ends_first_is_no_fault_of_nodes(block, monkeypatch, margin):
    """Before the launcher is asked for them, or while it starts them."""
    asked = block.code / "asked"
    monkeypatch.setenv(nodes.LAUNCHER, f"sh -c 'touch {asked}; exec sleep 60'")
    monkeypatch.setenv("FL_BLOCK_END", str(time.time() + 4))
    error = block.answer(train_configs=TWO | {"block_margin": margin})["error"]
    assert error["type"] == "BlockEnded", error
    assert margin < 4 or not asked.exists()
    eventually(lambda: left(block) == [], seconds=20)


def test_nodes_of_a_pbs_job_are_counted_once_and_named_in_a_file(block, monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    nodefile = tmp_path / "nodefile"
    nodefile.write_text("x1.hsn\nx1.hsn\nx2.hsn\nx3.hsn\n")
    monkeypatch.setenv("PBS_NODEFILE", str(nodefile))
    monkeypatch.setenv(nodes.LAUNCHER, "mpiexec --ppn 1 -n {nodes} --hostfile {hostfile}")
    words = nodes.command(2, tmp_path)
    assert words[:7] == f"mpiexec --ppn 1 -n 2 --hostfile {tmp_path}/hosts".split()
    assert (tmp_path / "hosts").read_text() == "x1.hsn\nx2.hsn\n"
    monkeypatch.setenv(nodes.LAUNCHER, "true {nodes}")
    with pytest.raises(nodes.NodesError, match="this worker's job has 3"):
        nodes.require(4)


def test_where_nodes_meet_is_the_users_alone_and_holds_no_pickle(block, monkeypatch):
    """Nor the way that the task's models go by."""
    seen, given = {}, []
    give = Rendezvous.give

    def noted(meeting, order, weights):
        given.extend(map(weakref.ref, weights.values()))
        give(meeting, order, weights)

    def look(launcher, meeting, *_):
        seen["kept"] = [kept for kept in given if kept() is not None]
        seen["mode"] = meeting.folder.stat().st_mode & 0o777
        seen["order"] = json.loads((meeting.folder / "order").read_text())
        seen["weights"] = meeting.weights()
        raise nodes.NodesError("seen")

    monkeypatch.setattr(Rendezvous, "give", noted)
    monkeypatch.setattr(nodes, "_await", look)
    monkeypatch.setattr(devices, "present", lambda: iter(["xpu", "cpu"]))
    monkeypatch.setenv("FL_BLOCK_END", "4000000000")
    settings = {"model": ("Linear", {}), "weights": block.build("Linear")}
    block.answer(train_configs=TWO | {"device": "auto"}, **settings)
    assert seen["mode"] == 0o700
    assert seen["order"]["until"] == 4_000_000_000 - 30, "every rank ends before the block"
    assert seen["order"]["wanted"]["train_configs"]["device"] == "xpu", "at every node the same"
    assert len(given) == 2 and not seen["kept"], "no model's memory while nodes train"
    assert seen["order"]["wanted"]["model"] is seen["order"]["wanted"]["upload"] is None
    assert seen["weights"].keys() == {"weight", "bias"}
