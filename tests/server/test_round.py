"""What a round holds of the model while it gathers updates."""

import gc

import pytest
import torch

from fl.server import round as rounds
from fl.server.checkpoint import CheckpointError, Snapshot
from fl.server.updates import Updates
from tests.server.conftest import train

COUNT = 12_347
"""Numbers of the model here, and of no other tensor."""
SCRIPTS = {name: train(delta) for name, delta in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
ALL = ["FedAvgAggregator", "FedAdamAggregator", "FedBuffAggregator", "MedianAggregator"]


# Who looks at every object meets one of torch's that does not like it.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op:FutureWarning")


def alive():
    """Models in this process's memory, whatever views there are of each."""
    found = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    models = [t for t in found if t.numel() == COUNT and t.device.type == "cpu"]
    return len({tensor.untyped_storage().data_ptr() for tensor in models})


@pytest.fixture
def run(fit, monkeypatch):
    """Two rounds; gives the model, and how many there were before each update was fetched."""
    counts, opened = [], Updates._opened

    def counting(updates, this, answer):
        counts.append(alive())
        return opened(updates, this, answer)

    monkeypatch.setattr(Updates, "_opened", counting)

    def _run(file=None, **settings):
        counts.clear()
        fit.file = file
        begin = Snapshot(0, {"w": torch.arange(float(COUNT))}, {}, {}, {})
        moved, _ = fit(SCRIPTS, start=begin, num_global_epochs=2, **settings)
        fit.snapshots.clear()
        return moved["w"], counts.copy()

    return _run


def test_beside_a_sum_a_large_model_is_not_held(run, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "LARGE_BYTES", 1)
    counts = run(tmp_path / "checkpoint")[1]
    # Of three updates: the model alone, then the sum alone, twice.
    assert counts[:3] == [1, 1, 1]
    counts = run()[1]
    assert counts[:3] == [1, 2, 2]


def test_a_small_model_is_held(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fl.server.checkpoint.read_model", None)
    run(tmp_path / "checkpoint")


@pytest.mark.parametrize("aggregator", ALL)
def test_a_model_that_is_read_again_makes_no_difference(run, tmp_path, monkeypatch, aggregator):
    held, _ = run(aggregator=aggregator)
    monkeypatch.setattr(rounds, "LARGE_BYTES", 1)
    moved, _ = run(tmp_path / "checkpoint", aggregator=aggregator)
    assert torch.equal(moved, held)


def test_a_run_whose_checkpoint_is_gone_ends_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "LARGE_BYTES", 1)
    file, opened = tmp_path / "checkpoint", Updates._opened

    def opening(updates, this, answer):
        file.unlink(missing_ok=True)
        return opened(updates, this, answer)

    monkeypatch.setattr(Updates, "_opened", opening)
    with pytest.raises(CheckpointError, match="the model cannot be read from it again"):
        run(file)
