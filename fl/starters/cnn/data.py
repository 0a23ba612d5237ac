"""The data: what a site trains on, and what is tested on."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from fl.client.partition import partition


def load(
    file: str | None = None, num_clients: int = 1, client_id: int = 0, held_out: float = 0.2
) -> tuple[TensorDataset, TensorDataset]:
    """A site's training set and test set.

    Its arguments stand in experiment.yml as `dataset_kwargs`; `client_id` is filled in, from 0.

    Args:
        file: An .npz file with `images` (n, channels, height, width), of 0 to 1, and `labels` (n,);
            without one, a site gets its part of scikit-learn's digits.
        num_clients: Into how many parts the digits are divided.
        client_id: Which part.
        held_out: Share of the samples that is not trained on.

    Returns:
        Any two `torch.utils.data.Dataset`s of (input, label) will do; the second may be None.
    """
    if file is not None:
        # Your own data: this is the place to read another format.
        with np.load(file) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        num_clients, client_id = 1, 0
    else:
        pixels, labels = load_digits(return_X_y=True)
        images = pixels.reshape(-1, 1, 8, 8) / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=held_out, random_state=0, stratify=labels
    )
    own = partition(train_y, num_clients)[client_id]
    return _dataset(train_x[own], train_y[own]), _dataset(test_x, test_y)


def _dataset(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(images).float(), torch.from_numpy(labels).long())
