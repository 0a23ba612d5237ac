"""A small network for tables."""

from torch import nn


def mlp(inputs: int = 30, classes: int = 2, width: int = 32) -> nn.Module:
    """Two linear layers; columns are scaled by statistics that are averaged as weights are.

    Args:
        inputs: Columns.
        classes: Outputs.
        width: Of the layer between.

    Returns:
        Takes (n, inputs), gives class scores (n, classes).
    """
    return nn.Sequential(
        nn.BatchNorm1d(inputs), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes)
    )
