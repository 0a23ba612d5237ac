import errno
import hashlib
import os
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from fl.server import checkpoint
from fl.server.checkpoint import CheckpointError, SiteMemory, Snapshot


@pytest.fixture
def snapshot():
    return Snapshot(
        version=7,
        weights={
            "layer.weight": torch.randn(3, 2),
            "steps": torch.tensor(5),
            "h": torch.ones(2).half(),
        },
        aggregator={"momentum": {"layer.weight": torch.randn(3, 2).double()}, "empty": {}},
        scheduler={"speed": {"a": 0.25}},
        sites={"a": SiteMemory(turn=7, version=6, answered=True, accepted=6, num_samples=12)},
        outlived=[{"transport": "file", "key": {"object": "x"}, "size": 3, "digest": "d"}],
    )


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name])


def test_what_is_read_is_what_was_written(snapshot, tmp_path):
    checkpoint.save(tmp_path / "c.safetensors", snapshot)
    found = checkpoint.load(tmp_path / "c.safetensors")
    same(found.weights, snapshot.weights)
    assert found.aggregator.keys() == snapshot.aggregator.keys()
    same(found.aggregator["momentum"], snapshot.aggregator["momentum"])
    assert replace(found, weights={}, aggregator={}) == replace(snapshot, weights={}, aggregator={})
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_the_model_is_read_alone(snapshot, tmp_path):
    checkpoint.save(tmp_path / "c", snapshot)
    same(checkpoint.read_model(tmp_path / "c"), snapshot.weights)


def shortened(content):
    return content[:-40]


def flipped(content):
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


def longer(content):
    return content + b"more"


def promising(content):
    return struct.pack("<Q", 2**62) + content[8:]


@pytest.mark.parametrize("damage", [shortened, flipped, longer, promising])
def test_a_damaged_model_is_not_gone_on_with(snapshot, tmp_path, damage):
    file = tmp_path / "c"
    checkpoint.save(file, snapshot)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match="c: the model cannot be read from it again: "):
        checkpoint.read_model(file)


def test_a_model_that_is_gone_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"read from it again: .*No such file"):
        checkpoint.read_model(tmp_path / "c")


def test_tied_weights_are_read_back_as_two(tmp_path, snapshot):
    tied = torch.randn(4)
    checkpoint.save(tmp_path / "c", replace(snapshot, weights={"a": tied, "b": tied}))
    found = checkpoint.load(tmp_path / "c").weights
    assert torch.equal(found["a"], found["b"])


def test_there_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("cut", [0, 10, 100, -1])
def test_a_torn_one_is_told(tmp_path, snapshot, cut):
    file = tmp_path / "c"
    checkpoint.save(file, snapshot)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="torn or damaged"):
        checkpoint.load(file)


def test_a_flipped_bit_is_told(tmp_path, snapshot):
    file = tmp_path / "c"
    checkpoint.save(file, snapshot)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="torn or damaged"):
        checkpoint.load(file)


def test_another_versions_is_told(tmp_path, snapshot, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", "fl checkpoint 99")
    checkpoint.save(tmp_path / "c", snapshot)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="written as 'fl checkpoint 99', this version reads"):
        checkpoint.load(tmp_path / "c")


def test_a_model_file_is_no_checkpoint(tmp_path):
    content = safetensors.torch.save({"w": torch.zeros(2)})
    (tmp_path / "c").write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(CheckpointError, match="written as None"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "Permission denied")]
)
def test_a_failed_write_leaves_the_last_one(tmp_path, snapshot, monkeypatch, number, said):
    file = tmp_path / "c"
    checkpoint.save(file, snapshot)

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(CheckpointError, match=f"{said}; the last checkpoint is untouched"):
        checkpoint.save(file, replace(snapshot, version=8))
    monkeypatch.undo()
    assert checkpoint.load(file).version == 7
    assert list(tmp_path.iterdir()) == [file]


# A file system of 64 kB, in a mount namespace that ends with the process.
FULL_DISK = """
mount -t tmpfs -o size=64k tmpfs {folder} && {python} -c "
import torch
from pathlib import Path
from fl.server.checkpoint import CheckpointError, Snapshot, load, save
file = Path('{folder}/c')
save(file, Snapshot(1, {{'w': torch.zeros(1000)}}, {{}}, {{}}, {{}}))
try:
    save(file, Snapshot(2, {{'w': torch.zeros(30000)}}, {{}}, {{}}, {{}}))
except CheckpointError as error:
    print(error, load(file).version)
"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_is_really_full(tmp_path):
    script = FULL_DISK.format(folder=tmp_path, python=sys.executable)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == (
        f"{tmp_path}/c: cannot be written: the disk is full; the last checkpoint is untouched 1"
    ), done.stderr
