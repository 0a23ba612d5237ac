"""Sites evaluate global models on their own validation sets, with the tasks they get anyway."""

import gc
import json

import pytest
import torch
from rich.console import Console

from fl import run
from fl.client import built, trainer
from fl.client.data import datasets
from fl.config_files import Files
from fl.server import checkpoint
from fl.server.evaluation import of_answers
from fl.server.events import SiteEvaluation
from fl.server.schedulers import Answer
from fl.tensors import decode
from fl.transport import Ref, UnreachableError
from fl.transport.inline import InlineTransport
from tests import experiment
from tests.in_process import InProcess


def answer(client_id, version, samples, loss=0.5, accuracy=0.25, **metrics):
    found = {"pre_val_loss": loss, "pre_val_accuracy": accuracy} | metrics
    found = {name: value for name, value in found.items() if value is not None}
    ref = Ref("memory", {}, 0, "")
    return Answer(client_id, version, 1, ref, 8, 1, found, {}, 0.0, 1.0, samples)


def test_the_mean_is_over_samples_and_by_model():
    found = of_answers(
        [
            answer("a", 3, 10, loss=1.0, accuracy=0.5),
            answer("b", 3, 30, loss=2.0, accuracy=1.0),
            answer("late", 2, 5),
            answer("trained only", 3, 0),
            answer("keeps it", 3, 10, pre_val_loss=None),
        ],
        during=4,
    )
    assert [(e.round, e.during, sorted(e.sites)) for e in found] == [
        (2, 4, ["late"]),
        (3, 4, ["a", "b"]),
    ]
    assert (found[1].loss, found[1].accuracy, found[1].num_samples) == (1.75, 0.875, 40)
    assert found[1].sites["b"] == SiteEvaluation(2.0, 1.0, 30)


class Counting(InProcess):
    """Notes each task's operation; a site in `mute` gives no result of an evaluation."""

    def __init__(self, mute=(), **kwargs):
        super().__init__(**kwargs)
        self.operations, self.mute = [], mute

    def submit(self, client, request):
        self.operations.append((client.client_id, request["operation"]))
        if request["operation"] == "evaluate" and client.client_id in self.mute:
            request = request | {"operation": "none"}
        return super().submit(client, request)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_CODE", str(tmp_path))
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))

    def _evaluate(every, rounds, endpoints):
        def change(server, clients):
            server["server_configs"] |= {"num_global_epochs": rounds, "federated_evaluation": every}
            server["server_configs"]["logging_output_filename"] = f"every-{every}"
            server["server_configs"]["scheduler_kwargs"] = {"deterministic": True}
            clients["clients"][1]["data_configs"]["dataset_kwargs"] = {"samples": 96}

        experiment.write(tmp_path, change)
        monkeypatch.setattr(run, "open_endpoints", lambda federation: endpoints)
        files = Files(tmp_path / "server.yaml", tmp_path / "clients.yaml")
        outcome = run.run(files, Console(quiet=True))
        file = outcome.folder / "evaluations.jsonl"
        return outcome, [json.loads(line) for line in file.open()], files.load()

    return _evaluate


def test_models_are_evaluated_by_the_tasks_that_train_them_and_the_last_by_its_own(evaluate):
    endpoints = Counting()
    outcome, lines, federation = evaluate(2, 5, endpoints)
    assert [line["round"] for line in lines] == [2, 4, 5]
    assert [operation for _, operation in endpoints.operations].count("train") == 10
    assert endpoints.operations[10:] == [("site-a", "evaluate"), ("site-b", "evaluate")]
    assert {name: site["num_samples"] for name, site in lines[0]["sites"].items()} == {
        "site-a": 32,
        "site-b": 96,
    }
    model = built.build_model(federation.client_configs.model_configs)
    model.load_state_dict(decode(outcome.model.read_bytes()))
    for client in federation.clients:
        _, held_out = datasets(client.data_configs, None)
        expected = trainer.evaluate(model, held_out, federation.train_configs(client))
        found = lines[-1]["sites"][client.client_id]
        assert found["loss"] == pytest.approx(expected.loss)
        assert found["accuracy"] == pytest.approx(expected.accuracy)
    assert outcome.at_sites.accuracy == lines[-1]["accuracy"]


def test_evaluating_changes_no_bit_of_a_run(evaluate):
    models = [evaluate(every, 2, InProcess())[0].model.read_bytes() for every in (1, 9)]
    assert models[0] == models[1]


def test_who_only_evaluates_is_granted_no_upload(evaluate, monkeypatch):
    asked = []
    monkeypatch.setattr(InlineTransport, "grant", lambda _, size: asked.append(size))
    evaluate(2, 1, InProcess())
    assert len(asked) == 4 and None not in asked[:2]
    assert asked[2:] == [None, None]


def test_sites_that_give_nothing_are_named_and_the_rest_counts(evaluate):
    outcome, lines, _ = evaluate(9, 1, Counting(mute=["site-a"]))
    assert sorted(lines[-1]["sites"]) == ["site-b"]
    log = [json.loads(line)["message"] for line in (outcome.folder / "log.jsonl").open()]
    assert any("site-a does not evaluate the model: " in str(message) for message in log)


def test_what_fails_after_the_last_round_costs_no_model(evaluate, monkeypatch):
    def unreachable(_transport, ref):
        raise UnreachableError("its endpoint is gone")

    outcome, lines, _ = evaluate(9, 1, InProcess())
    monkeypatch.setattr(InlineTransport, "evict", unreachable)
    outcome, lines, _ = evaluate(9, 1, InProcess())
    assert outcome.model.exists() and lines[-1]["round"] == 1
    log = [json.loads(line)["message"] for line in (outcome.folder / "log.jsonl").open()]
    assert "a model was not evicted: its endpoint is gone" in log


@pytest.mark.parametrize("error", [UnreachableError("it is restarted"), KeyboardInterrupt()])
def test_a_model_that_cannot_be_sent_to_be_evaluated_is_there_all_the_same(
    evaluate, monkeypatch, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(run, "at_sites", fail)
    outcome, _, _ = evaluate(1, 2, InProcess())
    assert outcome.model.exists() and outcome.at_sites is None
    log = [json.loads(line) for line in (outcome.folder / "log.jsonl").open()]
    told = [line["message"] for line in log if line["event"] == "warned"]
    reason = str(error) or "stopped by Ctrl-C"
    assert told == [f"sites do not evaluate the final model: {reason}"]


def test_who_is_suspended_has_no_say_in_what_the_model_is_worth(evaluate, monkeypatch):
    monkeypatch.setattr(run, "REJECTIONS", 0)
    endpoints = Counting()
    evaluate(1, 2, endpoints)
    assert not [name for name, operation in endpoints.operations if operation == "evaluate"]


def test_the_model_is_kept_before_sites_are_asked(evaluate, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "at_sites", lambda *_, **__: pytest.fail("ends here"))
    with pytest.raises(pytest.fail.Exception):
        evaluate(9, 1, InProcess())
    assert list(tmp_path.rglob("model.safetensors"))


def test_a_resumed_run_takes_back_what_it_will_hear_again(evaluate):
    outcome, lines, _ = evaluate(1, 3, InProcess())
    file = outcome.folder / "checkpoint.safetensors"
    snapshot = checkpoint.load(file)
    gc.collect()  # the run's own record holds its lock
    record = run.Record.reopen(outcome.folder)
    checkpoint.save(file, checkpoint.Snapshot(2, snapshot.weights, {}, {}, {}))
    record.snapshot()
    kept = [json.loads(line) for line in (outcome.folder / "evaluations.jsonl").open()]
    assert kept == [line for line in lines if line["during"] <= 2]
    assert len(kept) == 1 and torch.isfinite(torch.tensor(kept[0]["loss"]))
