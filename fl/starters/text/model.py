"""The model: put yours in place of it."""

import torch
from torch import nn


class Characters(nn.Module):
    """An embedding, a GRU, a linear layer."""

    def __init__(self, characters: int, width: int) -> None:
        """Build the layers."""
        super().__init__()
        self.embedding = nn.Embedding(characters, width // 2)
        self.recurrent = nn.GRU(width // 2, width, batch_first=True)
        self.scores = nn.Linear(width, characters)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Scores of what follows each; characters stand second, where the loss wants classes."""
        read, _ = self.recurrent(self.embedding(text))
        return torch.transpose(self.scores(read), 1, 2)


def build(characters: int = 96, width: int = 96) -> nn.Module:
    """A small recurrent network that reads characters and says what follows.

    What stands here is called by its name in experiment.yml, with `model_kwargs`.

    Args:
        characters: How many there are.
        width: Of the recurrent layer.

    Returns:
        Takes (n, length) int64, gives scores (n, characters, length).
    """
    return Characters(characters, width)
