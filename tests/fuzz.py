"""What is decoded of others' bytes, under a fuzzer that sees which code its inputs reach.

    python -m tests.fuzz KIND FOLDER [options of libFuzzer, -max_total_time=60 say]

KIND is model, header, update, log or records. FOLDER/inputs gets valid inputs to begin with, and
every one that reached something new. The fuzzer is https://github.com/google/atheris; it ends with
an error, and the input in a file of FOLDER, at the first exception that is no refusal, at an input
that takes five seconds, or too much memory.
"""

import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["fl.tensors", "fl.compression", "fl.client.audit", "fl.audit_table", "json"]
):
    import json

    from fl.audit_table import read_tasks, show
    from fl.client.audit import AuditError, open_log, verify
    from fl.compression import compress, decompress
    from fl.tensors import TensorsError, decode, encode

import torch

from fl.config import CompressorConfigs
from tests.memory import room

ROOM = 256 * 2**20
"""Bytes that decoding may take: inputs have a few thousand."""
SECONDS = 5
"""And how long one may take."""

LAYOUT = {"w": torch.zeros(40, 30), "b": torch.zeros(3)}
FORMATS = [
    CompressorConfigs(enable_compression=True, lossless_compressor="zstd"),
    CompressorConfigs(enable_compression=True, lossy_compressor="int8", lossless_compressor="zstd"),
    CompressorConfigs(enable_compression=True, lossy_compressor="bf16"),
    CompressorConfigs(enable_compression=True, lossy_compressor="int8", lossless_compressor="auto"),
    CompressorConfigs(enable_compression=True, top_k=0.01),
]

DTYPES = ["F64", "F16", "F8_E4M3", "U32", "C64", "BOOL", "F4"]
NUMBERS = [0, 1, 2, 8, 16, 2**31, 2**62, 2**63, 2**64 - 1, 2**64, -1, 0.5, True]

EVENTS = ["admitted", "refused", "failed", "ended"]
KEYS = ["event", "task", "operation", "round", "model", "loader", "reason", "update", "metrics"]
TIMES = ["2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"]


def read_model(data: bytes) -> None:
    """No more of it than there is."""
    assert sum(tensor.nbytes for tensor in _decoded(data).values()) <= len(data)


def read_header(data: bytes) -> None:
    """A model whose first length is right, and whose header says anything of its tensors."""
    provider = atheris.FuzzedDataProvider(data)
    header = {name: _entry(provider) for name in ("a", "b") if provider.ConsumeBool()}
    text = json.dumps(header).encode()
    read_model(struct.pack("<Q", len(text)) + text + bytes(provider.PickValueInList([0, 8, 16])))


def _entry(provider: atheris.FuzzedDataProvider) -> dict[str, object]:
    dtype = provider.PickValueInList(DTYPES)
    shape = [provider.PickValueInList(NUMBERS) for _ in range(provider.ConsumeIntInRange(0, 3))]
    offsets = [provider.PickValueInList(NUMBERS) for _ in range(2)]
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def read_update(data: bytes) -> None:
    """A compressed one, of the format that its first byte says."""
    coded = _decoded(data[1:])
    if not coded:
        return
    try:
        found = decompress(coded, LAYOUT, FORMATS[data[0] % len(FORMATS)])
    except TensorsError as error:
        _see_that_it_had_memory(error)
    else:
        assert found.keys() == LAYOUT.keys()


def read_log(file: Path, data: bytes) -> None:
    """A log, by all who do: who verifies it, who counts the day's tasks, and its owner."""
    file.unlink(missing_ok=True)  # a disk waits for what is written over
    file.write_bytes(data)
    with suppress(AuditError):
        verify(file)
    with suppress(AuditError):  # no line of it is a task's
        show(read_tasks(file))
    with open_log(file) as log:
        list(log.since(1e9))


def read_records(file: Path, data: bytes) -> None:
    """A log of records that hold anything at all."""
    provider = atheris.FuzzedDataProvider(data)
    lines = [json.dumps(_record(provider)) for _ in range(3)]
    read_log(file, "\n".join(lines).encode())


def _record(provider: atheris.FuzzedDataProvider) -> dict[str, object]:
    at = provider.PickValueInList([*TIMES, provider.ConsumeUnicode(40)])
    keys = [key for key in KEYS if provider.ConsumeBool()]
    return {"previous": "0" * 64, "at": at, **{key: _value(provider) for key in keys}}


def _value(provider: atheris.FuzzedDataProvider) -> object:
    text, number = provider.ConsumeUnicode(10), provider.ConsumeInt(9)
    code = {"path": text, "name": number}
    return provider.PickValueInList([None, number, text, [text, number], code, *EVENTS])


def _decoded(data: bytes) -> dict[str, torch.Tensor]:
    try:
        return decode(data)
    except TensorsError as error:
        _see_that_it_had_memory(error)
        return {}


def _see_that_it_had_memory(error: TensorsError) -> None:
    """A refusal, and not torch's words for having got none."""
    assert "DefaultCPUAllocator" not in str(error)


def models() -> Iterator[bytes]:
    """One of two tensors."""
    yield encode({"weight": torch.ones(2, 3), "half": torch.ones(3).bfloat16()})


def updates() -> Iterator[bytes]:
    """One of each format."""
    update = {name: torch.rand(like.shape) for name, like in LAYOUT.items()}
    for number, format_ in enumerate(FORMATS):
        yield bytes([number]) + encode(compress(update, format_))


def logs(file: Path) -> Iterator[bytes]:
    """A whole one, and its lines."""
    code = {"path": "digits/model.py", "name": "DigitsCNN"}
    happenings = [
        {"event": "admitted", "task": "1", "operation": "train", "round": 1, "model": code},
        {"event": "ended", "task": "1", "update": "3b0d", "metrics": ["val_loss"]},
        {"event": "refused", "task": "2", "rule": "max_rounds", "reason": "3 at most"},
    ]
    for happening in happenings:
        with open_log(file) as log:
            log.append(happening)
    yield file.read_bytes()
    yield from file.read_bytes().splitlines(keepends=True)


def main(kind: str, folder: str, *options: str) -> None:
    """Fuzz; the process ends here."""
    inputs, log = Path(folder, "inputs"), Path(folder, "audit.jsonl")
    read, seeds = {
        "model": (read_model, models()),
        "header": (read_header, ()),
        "update": (read_update, updates()),
        "log": (partial(read_log, log), logs(log)),
        "records": (partial(read_records, log), ()),
    }[kind]
    inputs.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (inputs / f"valid-{number}").write_bytes(data)
    limits = [f"-timeout={SECONDS}", "-max_len=4096", f"-artifact_prefix={folder}/"]
    atheris.Setup(["fuzz", str(inputs), *limits, *options], read)
    with room(ROOM):
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
