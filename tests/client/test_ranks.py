"""Several processes train what one would; their faults come back, and none of them stays."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.client import task
from fl.client.built import TrainingError
from fl.client.devices import DeviceError, of_rank
from fl.client.ranks import Ranks

# Minibatches of seven: parts of uneven size.
ONE = {"train_batch_size": 7, "num_local_epochs": 2, "optim_args": {"lr": 0.1}}
TWO = {**ONE, "nproc_per_node": 2}
TRAP = """
import os, signal
from fl.errors import FederationError
class Trap(nn.Linear):
    def __init__(self, how):
        super().__init__(4, 2)
        self.how, self.steps = how, 0
    def forward(self, inputs):
        self.steps += 1
        if self.steps == 2 and torch.distributed.get_rank() == 1:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "talk":
                raise FederationError("missing: " + "x" * 100_000)
            raise ValueError("no such layer")
        return super().forward(inputs)
"""


@pytest.fixture
def two_cores(monkeypatch):
    """What is tried does not depend on how many cores this machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})


# As the pools of `endpoint_id: local` are: Ctrl-C is for fl-run alone.
WORKER = """
import json, os, signal, sys
from fl.client import task
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.sched_getaffinity = lambda _pid: {0, 1}
task.run(json.load(open(sys.argv[1])))
"""


def ranks(pid=None):
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@given(
    size=st.integers(1, 5),
    minibatch=st.lists(st.integers(), max_size=20),
    least=st.integers(1, 2),
)
def test_ranks_share_a_minibatch_or_all_have_it(size, minibatch, least):
    parts = [Ranks(rank, size).part(minibatch, least) for rank in range(size)]
    if len(minibatch) < least * size:
        assert parts == [minibatch] * size
    else:
        assert sorted(place for part in parts for place in part) == sorted(minibatch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("samples", "trainer"), [(33, {}), (29, {"trainer": "FedProxTrainer", "mu": 5.0})]
)
def test_two_ranks_train_what_one_does(site, two_cores, samples, trainer):
    """The last minibatch has five samples, or a single one that both ranks take."""
    settings = {
        "model": ("Linear", {}),
        "weights": site.build("Linear"),
        "data": ("load", {"n": samples}),
    }
    alone, shared = (
        site.result(train_configs=configs | trainer, **settings) for configs in (ONE, TWO)
    )
    expected, found = site.tensors_of(alone), site.tensors_of(shared)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    assert (shared["steps"], shared["num_samples"]) == (alone["steps"], alone["num_samples"])
    assert shared["metrics"]["train_loss"] == pytest.approx(alone["metrics"]["train_loss"])


def test_no_rank_gets_a_single_sample_of_a_last_minibatch(site, two_cores):
    """It has three: a batch norm takes two or more."""
    assert site.result(train_configs=TWO, data=("load", {"n": 31}))["steps"] == 10


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("kill", "rank 1 of 2 ended: SIGKILL"),
        ("raise", "the model or its loss raised ValueError: no such layer (model.py, line"),
        ("talk", "missing: xxxxx"),  # more than a pipe holds
    ],
)
def test_a_rank_that_fails_ends_the_task_and_all_others(site, two_cores, how, expected):
    with (site.code / "model.py").open("a") as model:
        model.write(TRAP)
    answer = site.answer(
        model=("Trap", {"how": how}), weights=site.build("Trap", how=how), train_configs=TWO
    )
    assert expected in answer["error"]["message"]
    assert "Traceback" in answer["error"]["traceback"]
    assert "in forward" in answer["error"]["traceback"] or how == "kill"
    assert ranks() == []


def test_no_rank_outlives_a_worker_that_is_killed(site, tmp_path):
    (site.code / "model.py").write_text(
        "import time\nfrom torch import nn\n"
        "class Slow(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(4, 2)\n"
        "    def forward(self, inputs):\n        time.sleep(60)\n"
    )
    request = tmp_path / "request.json"
    wanted = site.request(
        model=("Slow", {}), weights=site.build("Slow"), train_configs={"nproc_per_node": 2}
    )
    request.write_text(json.dumps(wanted))
    with subprocess.Popen([sys.executable, "-c", WORKER, request]) as worker:
        try:
            mine = eventually(lambda: two_or_none(worker.pid))
        finally:
            worker.kill()
    _, alive = psutil.wait_procs(mine, timeout=10)
    for rank in alive:
        rank.kill()
    assert alive == []


def two_or_none(pid):
    found = ranks(pid)
    return found if len(found) == 2 else None


def eventually(look, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def test_ranks_have_the_devices_to_themselves(site, monkeypatch):
    """The task itself needs none meanwhile, for the model or for what it is pulled to."""
    devices = []

    def look(wanted, model, **_):
        devices.extend(parameter.device.type for parameter in model.parameters())
        raise TrainingError("seen")

    monkeypatch.setattr(task.distributed, "train", look)
    monkeypatch.setattr(task.devices, "choose", lambda _: torch.device("meta"))
    monkeypatch.setattr(task, "pull", lambda *given: devices.append(given[-1].type))
    configs = TWO | {"trainer": "FedProxTrainer", "mu": 1.0}
    assert site.answer(train_configs=configs)["error"]["message"] == "seen"
    assert set(devices) == {"cpu"}


def test_there_is_a_core_for_every_rank(site, two_cores):
    error = site.answer(train_configs={"nproc_per_node": 3})["error"]
    assert error["type"] == "DeviceError"
    assert "nproc_per_node asks for 3 cores or more, and this worker has 2" in error["message"]


def test_a_rank_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr("fl.client.devices.choose", torch.device)
    monkeypatch.delattr(torch, "accelerator", raising=False)  # as before torch 2.6
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert of_rank("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="asks for 3 cuda devices or more, and this worker has 2"):
        of_rank("cuda", 2)
    with pytest.raises(DeviceError, match="takes device: cuda, not one of them"):
        of_rank("cuda:1", 0)


@pytest.mark.parametrize(
    "configs", [{"trainer": "ScaffoldTrainer"}, {"dp_sgd": {"noise_multiplier": 1.0}}]
)
def test_what_several_ranks_cannot_do_is_refused(site, configs):
    error = site.answer(train_configs={"nproc_per_node": 2, **configs})["error"]
    assert "nproc_per_node above 1 takes neither ScaffoldTrainer nor dp_sgd" in error["message"]
