"""Source code of Python's own standard library, a text that ships with Python.

Its files are divided between the clients; what the base was pre-trained on is prose, Python's
documentation. The versions of Python differ in both a little.
"""

import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch.utils.data import TensorDataset

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""Every other character is read as a space."""
PACKAGES = ("asyncio", "email", "http", "json", "logging", "unittest", "urllib", "xml")


def get_code(
    num_clients=1, client_id=0, length=64, share=1.0
) -> tuple[TensorDataset, TensorDataset]:
    """A client's files, and those that all are tested on: every tenth.

    Args:
        num_clients: Into how many parts the files are divided.
        client_id: Which part, from 0.
        length: Characters a sample.
        share: Of each set's samples, the first so many are taken.

    Returns:
        Training and test set; characters (length,) int64, and the same moved by one: what follows.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for package in PACKAGES for file in (library / package).glob("*.py"))
    tested = files[::10]
    own = [file for file in files if file not in set(tested)][client_id::num_clients]
    return _samples(map(_read, own), length, share), _samples(map(_read, tested), length, share)


def get_prose(length=64, share=1.0) -> TensorDataset:
    """What the base is pre-trained on; see `get_code`."""
    return _samples((topics[name] for name in sorted(topics)), length, share)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _samples(texts, length, share) -> TensorDataset:
    known = {character: number for number, character in enumerate(CHARACTERS)}
    codes = [known.get(character, known[" "]) for character in "\n".join(texts)]
    windows = torch.tensor(codes).unfold(0, length + 1, length)
    kept = windows[: max(1, int(share * len(windows)))]
    return TensorDataset(kept[:, :-1].clone(), kept[:, 1:].clone())
