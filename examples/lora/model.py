"""A small transformer that reads characters, and low-rank adapters on top of its frozen weights."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

BASE = Path(__file__).with_name("base.safetensors")
"""The pre-trained weights: pretrain.py writes them, and every site gets them with this file."""


class CharacterTransformer(nn.Module):
    """A decoder; input (n, length), output (n, characters, length)."""

    def __init__(
        self,
        characters: int = 96,
        width: int = 96,
        depth: int = 2,
        heads: int = 4,
        length: int = 64,
    ) -> None:
        """Build the layers.

        Args:
            characters: How many there are.
            width: Of an embedding.
            depth: Blocks.
            heads: Of attention, in each.
            length: The most characters that are read at once.
        """
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, characters)

    def forward(self, text):
        """Scores of the character after each; classes stand second, where the loss wants them."""
        places = torch.arange(text.shape[1], device=text.device)
        read = self.blocks(self.embedding(text) + self.places(places))
        return self.scores(self.norm(read)).transpose(1, 2)


class Block(nn.Module):
    """Attention to what came before, then two layers for each place by itself."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the layers."""
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, read):
        """The block's sum with what it was given."""
        n, length, width = read.shape
        parts = self.attend(self.before(read)).view(n, length, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        read = read + self.gather(seen.transpose(1, 2).reshape(n, length, width))
        return read + self.narrow(functional.gelu(self.widen(self.between(read))))


class LoRA(nn.Module):
    """A frozen linear layer and a trained change of low rank (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        """Put an adapter on a layer; at first it changes nothing.

        Args:
            base: The layer.
            rank: Of the change.
            alpha: The change's factor is alpha / rank.
        """
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, inputs):
        """What the layer gives, and the change."""
        return self.base(inputs) + self.scale * (inputs @ self.down.T @ self.up.T)


def adapted(rank: int = 4, alpha: float = 8.0, **shape: int) -> CharacterTransformer:
    """The pre-trained transformer, frozen, with an adapter on each of its linear layers.

    Args:
        rank: Of the adapters.
        alpha: See `LoRA`.
        shape: Of the transformer, as it was pre-trained.

    Returns:
        The model; only the adapters' parameters are trained.
    """
    model = CharacterTransformer(**shape)
    model.load_state_dict(load_file(BASE))
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRA(child, rank, alpha))
    return model
