"""The model: put yours in place of it."""

from torch import nn


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
        # Brings columns of any scale to one.
        nn.BatchNorm1d(inputs),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )
