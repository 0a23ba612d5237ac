"""The data: what a site trains on, and what is tested on."""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from fl.client.partition import partition


def load(
    file: str | None = None, num_clients: int = 1, client_id: int = 0, held_out: float = 0.2
) -> tuple[TensorDataset, TensorDataset]:
    """A site's training set and test set.

    Its arguments stand in experiment.yml as `dataset_kwargs`; `client_id` is filled in, from 0.

    Args:
        file: A .csv file of numbers with a line of names above, whose last column is the class,
            from 0; without one, a site gets its part of scikit-learn's breast cancer data.
        num_clients: Into how many parts that is divided.
        client_id: Which part.
        held_out: Share of the samples that is not trained on.

    Returns:
        Any two `torch.utils.data.Dataset`s of (input, label) will do; the second may be None.
    """
    if file is not None:
        # Your own data: this is the place to read another format.
        table = np.loadtxt(file, delimiter=",", skiprows=1)
        rows, labels = table[:, :-1], table[:, -1].astype(int)
        num_clients, client_id = 1, 0
    else:
        rows, labels = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        rows, labels, test_size=held_out, random_state=0, stratify=labels
    )
    own = partition(train_y, num_clients)[client_id]
    return _dataset(train_x[own], train_y[own]), _dataset(test_x, test_y)


def _dataset(rows: np.ndarray, labels: np.ndarray) -> TensorDataset:
    # Columns may span magnitudes: their logarithms, which keep the sign, do not.
    scaled = np.sign(rows) * np.log1p(np.abs(rows))
    return TensorDataset(torch.from_numpy(scaled).float(), torch.from_numpy(labels).long())
