import os

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from fl.client import data, trainer


def check(site, operation="rehearse", **changes):
    """What a site says to a check, by the items' names."""
    items = site.result(operation=operation, **changes)["items"]
    return {item["check"]: item for item in items}


def test_a_check_is_the_way_alone(site):
    (site.code / "model.py").unlink()
    items = check(site, operation="check")
    assert list(items) == ["way", "download", "upload"]
    assert {item["outcome"] for item in items.values()} == {"ok"}


def test_a_fault_of_one_item_keeps_no_other_from_being_tried(site):
    items = check(site, data=("load_badly", {"fault": "raises"}))
    assert items["data"]["outcome"] == "failed"
    assert items["data"]["message"].endswith("raised OSError: disk gone (data.py, line 12)")
    assert items["model"]["outcome"] == items["device"]["outcome"] == "ok"
    assert "step" not in items


def test_a_step_that_cannot_be_done_is_told_with_its_reason(site):
    items = check(site, train_configs={"train_batch_size": 64, "train_drop_last": True})
    assert "train_batch_size is too large" in items["step"]["message"]


def test_a_model_of_another_layout_is_told(site):
    items = check(site, weights={"weight": torch.ones(1)})
    assert "tensors missing or unknown" in items["model"]["message"]


def test_no_validation_set_is_a_doubt(site):
    validating = {"train_configs": {"do_validation": True}}
    assert check(site, **validating)["validation"]["outcome"] == "ok"
    items = check(site, **validating, data=("load", {"validation": False}))
    assert items["validation"]["outcome"] == "warning"


def test_a_state_folder_that_cannot_be_written_is_a_doubt(site, monkeypatch):
    (site.code / "file").write_text("")
    monkeypatch.setenv("FL_SITE_STATE", str(site.code / "file" / "state"))
    items = check(site)
    assert items["disk"]["outcome"] == "warning"
    assert "cannot be written" in items["disk"]["message"]


def test_a_full_disk_is_told(site, monkeypatch):
    from fl.client import check as module

    monkeypatch.setattr(module, "LEAST_FREE_BYTES", 10**18)
    assert "may be needed" in check(site)["disk"]["message"]


def test_what_a_check_trains_leaves_the_next_round_as_it_was(site):
    alone = site.result()["update"]["digest"]
    site.cool()
    check(site, train_configs={"do_validation": True})
    assert site.result()["update"]["digest"] == alone


class Listed(Dataset):
    """A set of samples, with what torchvision calls targets or without."""

    def __init__(self, samples, targets=None):
        self.samples = samples
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


X = torch.zeros(6, 3)


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (
            TensorDataset(X, torch.tensor([0, 1, 2, 0, 1, 2])),
            "6 samples of [3] float32, 3 classes (0 to 2)",
        ),
        (
            TensorDataset(X.half(), torch.tensor([7, 7, 7, 7, 3, 3])),
            "6 samples of [3] float16, 2 classes (3, 7)",
        ),
        (TensorDataset(X, torch.rand(6)), "6 samples of [3] float32"),
        (TensorDataset(X.long(), X.long()), "6 samples of [3] int64"),
        (Listed([("a text", 4)] * 2), "2 samples, 1 class (4)"),
        (
            Listed([(X[0], 0)] * 9, targets=[0, 1, 1]),
            "9 samples of [3] float32, 2 classes (0, 1)",
        ),
        (
            Listed([(X[0], 0)] * 1000 + [(X[0], 1)]),
            "1,001 samples of [3] float32, 1 class (0) in the first 1,000",
        ),
        (Listed([(X[0], X[:1]), (X[0], X[:2])]), "2 samples of [3] float32"),
    ],
)
def test_a_data_set_is_told_by_its_shape_and_classes_alone(dataset, told):
    assert data.describe(dataset) == told


def test_a_rehearsal_tells_no_loss_of_fewer_than_the_owner_wants(site, tmp_path, monkeypatch):
    """Of a minibatch of one, whose size the server says, it would be one person's."""
    (tmp_path / "policy.yaml").write_text("min_samples: 10\n")
    monkeypatch.setenv("FL_SITE_POLICY", str(tmp_path / "policy.yaml"))
    evaluated = []
    evaluate = trainer.evaluate

    def counted(model, dataset, configs):
        evaluated.append(len(dataset))
        return evaluate(model, dataset, configs)

    monkeypatch.setattr(trainer, "evaluate", counted)
    check(site, train_configs={"do_validation": True, "val_batch_size": 1})
    assert evaluated == [10]


@pytest.mark.parametrize(("batch", "told"), [(9, False), (10, True)])
def test_a_rehearsals_step_tells_no_loss_of_fewer(site, tmp_path, monkeypatch, batch, told):
    (tmp_path / "policy.yaml").write_text("min_samples: 10\n")
    monkeypatch.setenv("FL_SITE_POLICY", str(tmp_path / "policy.yaml"))
    step = check(site, train_configs={"train_batch_size": batch})["step"]
    assert step["outcome"] == "ok"
    assert ("loss" in step["message"]) is told


@pytest.mark.parametrize(
    ("configs", "read"),
    [
        ({"train_batch_size": 31, "nproc_per_node": 2}, 16),
        ({"train_batch_size": 64, "nproc_per_node": 3}, 11),  # of 32, which is all there are
        ({"train_batch_size": 2, "nproc_per_node": 3}, 2),  # all have the whole
        ({"train_batch_size": 31}, 31),
    ],
)
def test_a_rehearsals_step_takes_what_a_rank_would(site, monkeypatch, configs, read):
    """The whole minibatch of a run on four devices need not fit one."""
    (site.code / "model.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "class Counting(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(4, 2)\n"
        "    def forward(self, inputs):\n"
        "        Path(__file__).with_name('read').write_text(str(len(inputs)))\n"
        "        return super().forward(inputs)\n"
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2})
    settings = {"model": ("Counting", {}), "weights": site.build("Counting")}
    assert check(site, train_configs=configs, **settings)["step"]["outcome"] == "ok"
    assert int((site.code / "read").read_text()) == read


def test_a_rehearsal_refuses_the_minibatch_that_ranks_would(site, monkeypatch):
    """There is none: its part would fit the set, the whole does not."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    configs = {"train_batch_size": 40, "train_drop_last": True, "nproc_per_node": 2}
    assert "train_batch_size is too large" in check(site, train_configs=configs)["step"]["message"]
