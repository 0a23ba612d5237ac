"""Python's own documentation of its language, a text that ships with Python.

Its topics ("assert", "lambda", ...) are divided between the clients, so that each reads of other
things. Topics quote each other: a paragraph is the first's alone, or what is tested on would be
trained on as well. The versions of Python differ in it a little, as they do in the language.
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
    texts = _each_paragraph_once()
    tested = texts[::10]
    own = [text for number, text in enumerate(texts) if number % 10][client_id::num_clients]
    return _dataset(own, length, share), _dataset(tested, length, share)


def _each_paragraph_once() -> list[str]:
    known, texts = set(), []
    for name in sorted(topics):
        own = {" ".join(part.split()): part for part in topics[name].split("\n\n")}
        texts.append("\n\n".join(part for words, part in own.items() if words not in known))
        known |= own.keys()
    return texts


def _dataset(texts, length, share) -> TensorDataset:
    known = {character: number for number, character in enumerate(CHARACTERS)}
    codes = torch.tensor([known.get(character, known[" "]) for character in "\n".join(texts)])
    windows = codes.unfold(0, length + 1, length)
    kept = windows[: max(1, int(share * len(windows)))]
    return TensorDataset(kept[:, :-1].clone(), kept[:, 1:].clone())
