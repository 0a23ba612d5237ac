"""A small network for tables."""

import torch
from torch import nn
from torch.nn import functional


class Scale(nn.BatchNorm1d):
    """Brings columns of any scale to one; a row alone, which tells none, by those before."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Scale rows (n, columns)."""
        if len(rows) > 1 or not self.training:
            return super().forward(rows)
        return functional.batch_norm(
            rows, self.running_mean, self.running_var, self.weight, self.bias
        )


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
        Scale(inputs), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes)
    )
