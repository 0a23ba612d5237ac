"""Samples are read by processes of their own, from wherever a task runs."""

import multiprocessing
import sys

import pytest

from fl.client import data, dp_sgd
from fl.config import DataConfigs, TrainConfigs

OWN = """
import torch
from torch.utils.data import Dataset
class Own(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return torch.full((4,), float(index)), 0
def load():
    return Own(), Own()
"""


def read(private):
    """What a worker does that reads a site's own set by a further process."""
    sets = data.datasets(DataConfigs(dataset_path="data.py", dataset_name="load"), None)
    noise = {"dp_sgd": {"noise_multiplier": 1.0}} if private else {}
    configs = TrainConfigs.model_validate({"num_workers": 1, "train_batch_size": 8, **noise})
    batches = (
        [dp_sgd.batches(sets[0], configs)]
        if private
        else [data.training_batches(sets[0], configs, 0), data.validation_batches(sets[1], configs)]
    )
    sys.exit(0 if all(inputs.shape == (8, 4) for each in batches for inputs, _ in each) else 3)


@pytest.mark.parametrize("private", [False, True])
def test_a_spawned_worker_reads_a_sites_own_set_by_processes(site_code, private):
    """As Parsl's workers, `endpoint_id: local`'s and ranks are: their own default is to spawn."""
    (site_code / "data.py").write_text(OWN)
    worker = multiprocessing.get_context("spawn").Process(target=read, args=(private,))
    worker.start()
    worker.join(200)
    worker.kill()
    assert worker.exitcode == 0
