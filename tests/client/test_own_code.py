"""An experiment's own loss and metric: files in the site's code, and under its policy as models."""

import pytest
import yaml

LOSS = {"loss_fn_path": "own.py", "loss_fn_name": "Loss"}
METRIC = {"metric_path": "own.py", "metric_name": "count", "do_validation": True}
CODE = """
from torch import nn
class Loss(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
    def forward(self, outputs, labels):
        return self.scale * nn.functional.cross_entropy(outputs, labels)
def count(labels, outputs):
    assert labels.shape == (32,) and outputs.shape == (32, 2)
    return labels.sum()
def breaks(labels, outputs):
    return "good"
"""


@pytest.fixture(autouse=True)
def own(site):
    (site.code / "own.py").write_text(CODE)


@pytest.fixture
def policy(tmp_path, monkeypatch):
    file = tmp_path / "site-policy.yaml"
    monkeypatch.setenv("FL_SITE_POLICY", str(file))
    return lambda **rules: file.write_text(yaml.safe_dump(rules))


def test_the_loss_is_the_files(site):
    plain = site.result()["metrics"]["train_loss"]
    assert site.result(train_configs=LOSS)["metrics"]["train_loss"] == plain
    scaled = LOSS | {"loss_fn_kwargs": {"scale": 2.0}}
    assert site.result(train_configs=scaled)["metrics"]["train_loss"] == pytest.approx(2 * plain)


def test_the_metric_sees_the_whole_set_at_once(site):
    configs = METRIC | {"do_pre_validation": True, "val_batch_size": 5}
    metrics = site.result(train_configs=configs)["metrics"]
    assert metrics["val_metric"] == metrics["pre_val_metric"]
    assert metrics["val_metric"] == int(metrics["val_metric"]) > 0
    evaluated = site.result(operation="evaluate", train_configs=METRIC)
    assert evaluated["metric"] == metrics["val_metric"]
    assert "metric" not in site.result(operation="evaluate")


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (METRIC | {"metric_name": "breaks"}, "own.py: breaks raised ValueError"),
        (METRIC | {"metric_name": "counts"}, "no function or class 'counts'; did you mean count?"),
        (LOSS | {"loss_fn_kwargs": {"size": 1}}, "own.py: Loss raised TypeError"),
        (LOSS | {"loss_fn_path": "../own.py"}, "lies outside this site's code folder"),
    ],
)
def test_a_fault_in_them_is_named(site, configs, expected):
    assert expected in site.answer(train_configs=configs)["error"]["message"]


NET = {"path": "model.py", "name": "Net"}


@pytest.mark.parametrize(
    ("configs", "name"), [(LOSS, "Loss"), (METRIC, "count")], ids=["loss", "metric"]
)
def test_a_policy_that_lists_models_lists_them_too(site, policy, configs, name):
    policy(models=[NET])
    error = site.answer(train_configs=configs)["error"]
    assert error["type"] == "PolicyRefusal"
    assert f"own.py: {name} is not listed" in error["message"]
    policy(models=[NET, {"path": "own.py", "name": name}])
    assert "result" in site.answer(train_configs=configs)


def test_a_metric_that_may_not_leave_stays(site, policy):
    policy(metrics=["train_loss", "val_loss", "val_accuracy"])
    assert "val_metric" not in site.result(train_configs=METRIC)["metrics"]
    error = site.answer(operation="evaluate", train_configs=METRIC)["error"]
    assert "val_metric may not leave" in error["message"]
