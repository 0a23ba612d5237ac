"""Python's own documentation of its language, a text that ships with Python.

Its topics ("assert", "lambda", ...) are divided between the clients, so that each reads of other
things. The versions of Python differ in it a little, as they do in the language.
"""

from pydoc_data.topics import topics

import torch
from torch.utils.data import TensorDataset

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Every other character is read as a space."""


def get_text(
    num_clients=1, client_id=0, length=64, share=1.0
) -> tuple[TensorDataset, TensorDataset]:
    """A client's topics, and those that all are tested on: every tenth.

    Args:
        num_clients: Into how many parts the topics are divided.
        client_id: Which part, from 0.
        length: Characters a sample.
        share: Of each set's samples, the first so many are taken.

    Returns:
        Training and test set; characters (length,) int64, and the same moved by one: what follows.
    """
    names = sorted(topics)
    tested = names[::10]
    own = [name for name in names if name not in set(tested)][client_id::num_clients]
    return _dataset(own, length, share), _dataset(tested, length, share)


def _dataset(names, length, share) -> TensorDataset:
    known = {character: number for number, character in enumerate(CHARACTERS)}
    text = "\n".join(topics[name] for name in names)
    codes = torch.tensor([known.get(character, known[" "]) for character in text])
    windows = codes.unfold(0, length + 1, length)
    kept = windows[: max(1, int(share * len(windows)))]
    return TensorDataset(kept[:, :-1].clone(), kept[:, 1:].clone())
