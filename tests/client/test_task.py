import time

import pytest
import torch

from fl.client import built, codec, site_code, task, trainer
from fl.compression import decompress
from fl.config import CompressorConfigs, ModelConfigs, TrainConfigs
from fl.tensors import decode, encode
from fl.transport import Ref, UnreachableError
from fl.transport.inline import InlineTransport

VALIDATING = {"do_validation": True, "do_pre_validation": True}


def test_a_round_at_a_site(site):
    result = site.result(train_configs=VALIDATING, job="job-1")
    assert set(site.update()) == set(site.weights)
    assert result["num_samples"] == 32
    assert (result["steps"], result["stopped"], result["job"]) == (1, "budget", "job-1")
    assert {"pre_val_loss", "val_accuracy", "train_loss"} <= set(result["metrics"])
    assert set(result["seconds"]) >= {"get", "load", "train", "put"}


def test_a_round_can_be_repeated_and_differs_by_client_and_round(site):
    def digest(**changes):
        return site.result(train_configs={"train_batch_size": 8}, **changes)["update"]["digest"]

    assert digest() == digest()
    assert digest() != digest(round=2)
    assert digest() != digest(client_id="b")


def test_a_warm_worker_loads_its_data_once(site):
    for number in (1, 2):
        site.result(round=number)
    calls = site_code.load("data.py", "load").__globals__["calls"]
    assert calls == [32]
    site.result(data=("load", {"n": 8}))
    assert calls == [32, 8]
    site.result(operation="evaluate", data=("load", {"n": 8}))
    assert calls == [32, 8]


def test_another_run_and_a_rehearsal_load_data_anew(site):
    """The file may be another by then, or somebody's record withdrawn."""
    site.result(data=("load", {"n": 8}))
    calls = site_code.load("data.py", "load").__globals__["calls"]
    site.result(data=("load", {"n": 8}), run_id="run-2")
    assert calls == [8, 8]
    site.result(operation="rehearse", data=("load", {"n": 8}))
    assert calls == [8, 8, 8]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"operation": "shell"}, "KeyError"),
        ({"data_configs": {"dataset_path": "../x.py", "dataset_name": "f"}}, "outside"),
        ({"data_configs": {"dataset_path": "none.py", "dataset_name": "f"}}, "not in this site's"),
        *[
            ({"data": ("load_badly", {"fault": fault})}, expected)
            for fault, expected in [
                ("raises", "disk gone"),
                ("one", "must return"),
                ("empty", "no training samples"),
            ]
        ],
        ({"weights": {"weight": torch.ones(1)}}, "missing or unknown"),
        ({"update": "gradient"}, "request: update: Input should be 'difference' or 'model'"),
        ({"steps": 0}, "request: steps: "),
        ({"learning_rate_scale": float("inf")}, "request: learning_rate_scale: "),
        ({"client_id": "../b"}, "request: client_id: "),
        ({"run_id": ".."}, "request: run_id: "),
        ({"job": "a/b"}, "request: job: "),
        ({"hurry": True}, "request: hurry: unknown here: is this site's fl older"),
        ({"train_configs": {"trainer": "FedProxTrainer"}}, "mu is what FedProxTrainer needs"),
    ],
)
def test_a_fault_comes_back_as_an_answer(site, changes, expected):
    error = site.answer(**changes)["error"]
    assert expected in error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" in error["traceback"]


def test_what_is_no_reference_is_named(site):
    error = task.run(site.request() | {"model": {"transport": "inline"}})["error"]
    assert "not a reference" in error["message"]


class Ended(BaseException):
    """What ends a process, here."""


def test_a_process_whose_device_is_broken_ends_with_its_next_task(site, monkeypatch):
    """A fault in cuda stays with its process: all that came after would fail."""

    def end(code):
        raise Ended

    def fault():
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(task.os, "_exit", end)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fault)
    with pytest.raises(Ended):
        site.answer()


# What a round sends back.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_difference_is_the_trained_model_less_the_received(site, dtype):
    net = ("Net", {"dtype": dtype, "frozen": True})
    settings = {
        "weights": site.build(net[0], **net[1]),
        "base": site.base(net[0], **net[1]),
        "model": net,
        "train_configs": {"optim_args": {"lr": 0.1}, "num_local_epochs": 3},
    }
    start = settings["weights"]
    start["layers.1.num_batches_tracked"] += 5
    end = site.update(**settings)
    moved = site.update(**settings, update="difference")
    assert {name: tensor.dtype for name, tensor in moved.items()} == {
        name: tensor.dtype for name, tensor in start.items()
    }
    for name, tensor in moved.items():
        if name.endswith("num_batches_tracked"):
            assert tensor == end[name] == 8  # a counter's value, not its difference
        else:
            assert torch.equal(tensor, end[name] - start[name])
    assert "layers.0.weight" not in moved
    assert torch.count_nonzero(moved["layers.3.bias"]) > 0


@pytest.mark.parametrize("lossy", [None, "bf16", "int8"])
def test_an_update_travels_in_the_format_that_the_server_wants(site, lossy):
    wanted = {
        "enable_compression": True,
        "lossy_compressor": lossy,
        "lossless_compressor": "zstd",
        "param_cutoff": 8,
    }
    plain = site.update(update="difference")
    coded = site.update(update="difference", compressor_configs=wanted)
    assert coded["layers.0.weight"].dtype == torch.uint8
    copy = decompress(coded, plain, CompressorConfigs(**wanted))
    for name, tensor in plain.items():
        torch.testing.assert_close(copy[name], tensor, rtol=0.01, atol=1e-3 if lossy else 0)


def test_auto_is_decided_by_the_speed_at_which_the_model_came(site, monkeypatch):
    wanted = {"enable_compression": True, "lossless_compressor": "auto", "param_cutoff": 8}
    speeds = []

    def chosen(update, configs, bytes_per_second):
        speeds.append(bytes_per_second)
        return configs.model_copy(update={"lossless_compressor": "zstd"})

    monkeypatch.setattr(codec, "chosen", chosen)
    plain = site.update(update="difference")
    speeds.clear()
    result = site.result(update="difference", compressor_configs=wanted)
    assert speeds == [len(encode(site.weights)) / result["seconds"]["get"]]
    coded = site.tensors_of(result)
    assert coded["layers.0.weight"].dtype == torch.uint8
    copy = decompress(coded, plain, CompressorConfigs(**wanted))
    assert all(torch.equal(copy[name], tensor) for name, tensor in plain.items())


# The local budget.


@pytest.mark.parametrize("mode", ["epoch", "step", "seconds"])
def test_the_servers_steps_override_the_local_budget(site, mode):
    configs = {"mode": mode, "train_batch_size": 8, "num_local_steps": 2}
    assert site.result(train_configs=configs, steps=7)["steps"] == 7


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"lr_scheduler": "OneCycleLR", "lr_scheduler_args": {"max_lr": 0.5, "total_steps": 9}},
        {"lr_scheduler": "CyclicLR", "lr_scheduler_args": {"base_lr": [0.1], "max_lr": 0.5}},
    ],
)
def test_the_learning_rate_scale_scales_the_step(site, schedule):
    configs = {"optim_args": {"lr": 0.5}, **schedule}
    linear = {"weights": site.build("Linear"), "model": ("Linear", {}), "update": "difference"}
    whole = site.update(**linear, train_configs=configs)["weight"]
    half = site.update(**linear, train_configs=configs, learning_rate_scale=0.5)["weight"]
    torch.testing.assert_close(half, whole / 2)
    # It is of this round alone: the optimizer that is kept is as new in the next.
    assert torch.equal(site.update(**linear, train_configs=configs)["weight"], whole)


# Federated evaluation.


def test_evaluation_at_a_site(site):
    result = site.result(operation="evaluate", job="job-2")
    model = built.build_model(ModelConfigs(model_path="model.py", model_name="Net"))
    samples = site_code.load("data.py", "load")()[1]
    expected = trainer.evaluate(model, samples, TrainConfigs())
    assert result["loss"] == pytest.approx(expected.loss)
    assert result["accuracy"] == expected.accuracy
    assert (result["num_samples"], result["job"]) == (32, "job-2")
    assert {"get", "load", "evaluate"} <= set(result["seconds"])


def test_evaluation_needs_a_validation_set(site):
    error = site.answer(operation="evaluate", data=("load", {"validation": False}))["error"]
    assert error["message"] == "client a has no validation set"


def test_evaluation_leaves_scaffolds_control_aside(site):
    broadcast = {**site.weights, "control/layers.3.bias": torch.ones(2)}
    controlled = site.result(operation="evaluate", weights=broadcast)
    assert controlled["loss"] == site.result(operation="evaluate")["loss"]


def test_a_site_that_is_sent_ahead_answers_and_touches_nothing():
    ahead = {"operation": "enter", "client_id": "a", "job": "run.a.enter.1"}
    assert task.run(ahead) == {"result": {}}


class DownFor(InlineTransport):
    """The site's way, whose daemon is down for some tries."""

    def __init__(self, tries):
        super().__init__()
        self.left = tries

    def put(self, *pieces):
        if self.left:
            self.left -= 1
            raise UnreachableError("connection refused")
        return super().put(*pieces)


@pytest.fixture
def way(monkeypatch):
    monkeypatch.setattr(task, "PUT_PAUSE_SECONDS", 0.001)

    def down_for(tries):
        way = DownFor(tries)
        monkeypatch.setattr(task, "_transport", lambda *_: way)
        return way

    return down_for


def test_a_trained_update_waits_for_the_sites_way(site, way):
    down = way(3)
    assert decode(down.get(Ref.from_json(site.result()["update"])))


@pytest.mark.parametrize("limit", ["patience", "block"])
def test_it_waits_no_longer_than_it_may(site, way, monkeypatch, limit):
    if limit == "patience":
        monkeypatch.setattr(task, "PUT_SECONDS", 0.02)
    else:
        # Of training the end of the block leaves nothing here; of waiting, a moment.
        monkeypatch.setattr(task.budget, "block_end", lambda: time.time() + 0.02)
        monkeypatch.setattr(task, "_until", lambda *_: None)
    way(10**6)
    assert site.answer()["error"]["message"] == "connection refused"
