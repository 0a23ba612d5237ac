"""The model: put yours in place of it."""

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


def build(inputs: int = 30, classes: int = 2, width: int = 32) -> nn.Module:
    """A small network for tables.

    What stands here is called by its name in experiment.yml, with `model_kwargs`.

    Args:
        inputs: Columns, the label's left out.
        classes: Outputs.
        width: Of the layer between.

    Returns:
        Takes (n, inputs) float32, gives class scores (n, classes).
    """
    return nn.Sequential(
        Scale(inputs),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )
