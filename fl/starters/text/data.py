"""The data: what a site trains on, and what is tested on."""

from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch.utils.data import TensorDataset

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Every other character is read as a space."""
LENGTH = 64
"""Characters a sample."""


def load(
    file: str | None = None, num_clients: int = 1, client_id: int = 0, held_out: float = 0.2
) -> tuple[TensorDataset, TensorDataset]:
    """A site's training set and test set.

    Its arguments stand in experiment.yml as `dataset_kwargs`; `client_id` is filled in, from 0.

    Args:
        file: A .txt file; without one, a site gets its part of Python's documentation of itself.
        num_clients: Into how many parts that is divided.
        client_id: Which part.
        held_out: Share of the text, its end, that is not trained on.

    Returns:
        Any two `torch.utils.data.Dataset`s of (input, label) will do; the second may be None.
    """
    if file is not None:
        # Your own data: this is the place to read another format.
        text, num_clients, client_id = Path(file).read_text(), 1, 0
    else:
        # Its topics quote each other: a paragraph is taken once, so that none is tested on, too.
        parts = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
        once = {" ".join(part.split()): part for part in parts}
        text = "\n\n".join(once.values())[:200_000]
    end = int(len(text) * (1 - held_out))
    part = end // num_clients
    own = text[client_id * part : (client_id + 1) * part]
    return _dataset(own), _dataset(text[end:])


def _dataset(text: str) -> TensorDataset:
    """What is read, and the same moved by one: what follows."""
    known = {character: number for number, character in enumerate(CHARACTERS)}
    codes = torch.tensor([known.get(character, known[" "]) for character in text])
    windows = codes.unfold(0, LENGTH + 1, LENGTH)
    return TensorDataset(windows[:, :-1].clone(), windows[:, 1:].clone())
