"""scikit-learn's breast cancer data: 569 patients, 30 measurements each, and the diagnosis.

Wolberg, Mangasarian, Street 1995, https://doi.org/10.24432/C5DW2B; it ships with the library. Each
client stands for a hospital, which has seen patients of its own.
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from fl.client.partition import partition


def get_patients(
    num_clients=1, client_id=0, partition_strategy="dirichlet", seed=42, alpha=1.0
) -> tuple[TensorDataset, TensorDataset]:
    """A hospital's patients, and the patients that all are tested on.

    Args:
        num_clients: Hospitals.
        client_id: Which of them, from 0.
        partition_strategy: iid, class_noniid or dirichlet.
        seed: Seed of the split.
        alpha: Concentration for dirichlet.

    Returns:
        Training and test set; measurements (30,) float32, diagnosis int64 (0 malignant, 1 benign).
    """
    measured, diagnosis = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        measured, diagnosis, test_size=0.2, random_state=0, stratify=diagnosis
    )
    own = partition(train_y, num_clients, partition_strategy, seed=seed, alpha=alpha)[client_id]
    return _dataset(train_x[own], train_y[own]), _dataset(test_x, test_y)


def _dataset(measured, diagnosis) -> TensorDataset:
    # Measurements span six orders of magnitude.
    scaled = torch.log1p(torch.from_numpy(measured).float())
    return TensorDataset(scaled, torch.from_numpy(diagnosis).long())
