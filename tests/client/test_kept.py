"""What a site keeps of a client between rounds."""

import os
import time
from pathlib import Path

import pytest
import torch

from fl.client.kept import FORGOTTEN_SECONDS, keep

TENSORS = {"w": torch.zeros(2)}


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("FL_SITE_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_what_a_run_has_left_long_ago_is_removed(state):
    for run in ("run-1", "run-2"):
        keep(run, "a", 1, TENSORS)
    past = time.time() - FORGOTTEN_SECONDS - 60
    os.utime(state / "run-1/a/1.safetensors", (past, past))
    (state / "run-1/a/dp_sgd.json").write_text("[]")
    os.utime(state / "run-1/a/dp_sgd.json", (past, past))
    keep("run-3", "a", 1, TENSORS)
    left = {str(file.relative_to(state)) for file in state.glob("run-*/*/*")}
    assert left == {"run-1/a/dp_sgd.json", "run-2/a/1.safetensors", "run-3/a/1.safetensors"}


def test_what_is_kept_is_on_disk_before_its_name(state, monkeypatch):
    done = []
    monkeypatch.setattr("os.fsync", lambda _descriptor: done.append("fsync"))
    replace = Path.replace
    monkeypatch.setattr(
        "pathlib.Path.replace",
        lambda self, target: (done.append("rename"), replace(self, target))[1],
    )
    keep("run-1", "a", 1, TENSORS)
    assert done == ["fsync", "rename", "fsync"]  # the file, its name, the folder
    assert (state / "run-1/a/1.safetensors").exists()
