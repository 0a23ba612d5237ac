"""A small recurrent network that reads characters and says what follows."""

from torch import nn


class CharacterModel(nn.Module):
    """An embedding, a GRU, a linear layer; input (n, length), output (n, characters, length)."""

    def __init__(self, characters: int = 96, width: int = 128) -> None:
        """Build the layers.

        Args:
            characters: How many there are.
            width: Of the recurrent layer.
        """
        super().__init__()
        self.embedding = nn.Embedding(characters, width // 2)
        self.recurrent = nn.GRU(width // 2, width, batch_first=True)
        self.scores = nn.Linear(width, characters)

    def forward(self, text):
        """Scores of the character after each; classes stand second, where the loss wants them."""
        return self.scores(self.recurrent(self.embedding(text))[0]).transpose(1, 2)
