"""The model: put yours in place of it."""

from torch import nn


def build(channels: int = 1, classes: int = 10, width: int = 16) -> nn.Module:
    """A small convolutional network for images of any size from 8 pixels on.

    What stands here is called by its name in experiment.yml, with `model_kwargs`.

    Args:
        channels: Of an image: 1 is grey, 3 is RGB.
        classes: Outputs.
        width: Channels of the first convolution.

    Returns:
        Takes (n, channels, height, width) float32, gives class scores (n, classes).
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(4),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
