import pytest
import torch

from fl.client import built, site_code, task, trainer
from fl.config import ModelConfigs, TrainConfigs

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
