"""A model as named tensors, and those as bytes: safetensors and a digest. No pickle.

The format is https://github.com/huggingface/safetensors: a length, a JSON header with names,
shapes and dtypes, then the raw values. It is written and read here as views of memory, because the
library's own functions copy a model two or three times.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3

from fl.errors import FederationError

# Torch then asks for huge pages: a fresh page costs more than the numbers that are written to it.
# It looks for this when it first allocates; without the kernel's consent it changes nothing.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

Tensors = dict[str, torch.Tensor]
Data = bytes | bytearray | memoryview

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Safetensors' names of dtypes."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}

LENGTH_BYTES = 8
MALFORMED = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""What reading a header raises that does not mean tensors."""
HEADER_LIMIT = 100_000_000
"""The largest header that is read, as in the library."""


class TensorsError(FederationError):
    """Bytes are no tensors, or tensors are not those of the model."""


def pieces(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Tensors as safetensors, without a copy of those that are contiguous and on the CPU.

    Args:
        tensors: Named tensors of any shape, dtype and device; tied ones are written twice.
        metadata: Text to go with them.

    Returns:
        The header, then each tensor's own memory: what is written is what they hold by then.

    Raises:
        TensorsError: A dtype is none of safetensors'.
    """
    return list(each_piece(tensors, metadata))


def each_piece(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[memoryview]:
    """The same one at a time: what has to be copied, as from a GPU, is copied when it is asked for.

    Args:
        tensors: As for `pieces`.
        metadata: As for `pieces`.

    Yields:
        The header, then each tensor's memory.

    Raises:
        TensorsError: A dtype is none of safetensors'.
    """
    # The widest first, so that every tensor begins at a multiple of its own width.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise TensorsError(f"{name}: safetensors has no {tensor.dtype}")
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    head = len(text).to_bytes(LENGTH_BYTES, "little") + text
    yield memoryview(head)
    for _, tensor in ordered:
        yield memory(tensor)


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The `pieces` of tensors in one.

    Args:
        tensors: Named tensors of any shape, dtype and device.

    Returns:
        The encoded model, about as many bytes as its tensors hold.
    """
    return b"".join(pieces(tensors))


def decode(data: Data) -> Tensors:
    """Read what `pieces` and `encode` wrote.

    Args:
        data: The encoded model. Where it can be written to, the tensors are views of it, and it
            belongs to them from now on.

    Returns:
        Its tensors, on the CPU, with the shapes and dtypes they had.

    Raises:
        TensorsError: The bytes are not safetensors. Nothing is allocated by what they promise.
    """
    header, begin = read_header(data)
    body = memoryview(data)[begin:]
    if body.readonly:
        body = memoryview(bytearray(body))
    tensors: Tensors = {}
    end = 0
    try:
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            tensors[name], end = _view(body, entry, end)
    except MALFORMED as error:
        raise _foreign(data, f"{type(error).__name__}: {error}") from error
    if end != len(body):
        raise _foreign(data, f"its tensors hold {end} bytes, {len(body)} follow its header")
    return tensors


def read_each(take: Callable[[int], Data]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read what `pieces` and `encode` wrote one tensor at a time, in the order in which they lie.

    Args:
        take: Gives the next so many bytes, which belong to their tensor from then on.

    Yields:
        Each tensor with its name.

    Raises:
        TensorsError: The bytes are not safetensors.
    """
    length = bytes(take(LENGTH_BYTES))
    encoded = length + bytes(take(int.from_bytes(length, "little")))
    header, end = read_header(encoded)[0], 0
    try:
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = end, entry["data_offsets"][1]
            body = memoryview(take(end - begin))
            yield name, _view(body, {**entry, "data_offsets": [0, len(body)]}, 0)[0]
    except MALFORMED as error:
        raise _foreign(encoded, f"{type(error).__name__}: {error}") from error


def read_file(file: Path) -> memoryview:
    """Read a whole file, as `numpy.fromfile` does not where the disk or its server fails amid it.

    Args:
        file: Its path.

    Returns:
        What it holds, in memory that can be written to.

    Raises:
        OSError: It cannot be read, or has become shorter meanwhile.
    """
    with file.open("rb") as stream:
        content = np.empty(os.fstat(stream.fileno()).st_size, np.uint8).data
        if stream.readinto(content) != len(content):
            raise OSError(errno.EIO, "it ends too soon", str(file))
    return content


def largest_encoding(tensors: Mapping[str, torch.Tensor]) -> int:
    """The most bytes that such tensors take when they are encoded.

    Args:
        tensors: Named tensors; only their names, shapes and dtypes count.

    Returns:
        Bytes: of the values, and of a header with room for any spelling of it.
    """
    values = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    header = sum(len(json.dumps(n)) + 128 + 24 * tensor.dim() for n, tensor in tensors.items())
    return values + header + 64


def read_header(data: Data) -> tuple[dict[str, Any], int]:
    """The header of encoded tensors.

    Args:
        data: The encoded model.

    Returns:
        The header, and where the values begin.

    Raises:
        TensorsError: There is none.
    """
    begin = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    if not LENGTH_BYTES < begin <= min(len(data), HEADER_LIMIT):
        raise _foreign(data, f"its header would end at byte {begin}")
    try:
        header = json.loads(bytes(data[LENGTH_BYTES:begin]))
    except (ValueError, RecursionError) as error:
        raise _foreign(data, f"{type(error).__name__}: {error}") from error
    if not isinstance(header, dict):
        raise _foreign(data, "its header is no JSON object")
    return header, begin


def _view(body: memoryview, entry: Mapping[str, Any], expected: int) -> tuple[torch.Tensor, int]:
    """The tensor of a header's entry, which begins where the last one ended; and its own end."""
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    begin, end = entry["data_offsets"]
    if not all(type(size) is int and size >= 0 for size in (begin, *shape)):
        raise ValueError("sizes are counts")
    count = math.prod(shape)
    if begin != expected or end != begin + count * dtype.itemsize or end > len(body):
        raise ValueError(f"bytes {begin} to {end} do not fit a tensor of {shape}")
    if count == 0:
        return torch.empty(shape, dtype=dtype), end
    return torch.frombuffer(body, dtype=dtype, count=count, offset=begin).reshape(shape), end


def _foreign(data: Data, reason: str) -> TensorsError:
    told = " ".join(reason.split())  # torch adds its own traceback
    return TensorsError(f"not a safetensors model of {len(data)} bytes: {told:.200}")


def memory(tensor: torch.Tensor) -> memoryview:
    """A tensor's values as bytes: its own memory, where that is contiguous and on the CPU."""
    tensor = tensor.detach().resolve_conj().resolve_neg()  # a view may only say so of its numbers
    values = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return values.numpy().data


def digest(*data: Data) -> str:
    """BLAKE3 of encoded bytes, in hex (https://github.com/BLAKE3-team/BLAKE3-specs).

    It is as hard to forge as SHA-256 and four times as fast where the processor knows SHA, which
    counts: a model is hashed by everybody who puts or gets it.
    """
    return digest_each(data)


def digest_each(pieces: Iterable[Data]) -> str:
    """The same of pieces that need not all be there at once."""
    hashed = blake3()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def size(data: Sequence[Data]) -> int:
    """Bytes of all pieces."""
    return sum(len(piece) for piece in data)


def is_inexact(tensor: torch.Tensor) -> bool:
    """Whether it holds real or complex numbers, of which there are differences and means."""
    return tensor.is_floating_point() or tensor.is_complex()


def norm(tensors: Tensors) -> float:
    """Euclid's norm over all floating-point and complex tensors together.

    Args:
        tensors: Named tensors, of real or complex numbers; counters and other integers are left
            aside.

    Returns:
        The norm; infinity where it overflows.
    """
    real = (torch.view_as_real(t) if t.is_complex() else t for t in tensors.values())
    return math.hypot(*(_norm(t) for t in real if t.is_floating_point()))


def _norm(tensor: torch.Tensor) -> float:
    """In float32 at least; in a wider type than its own, torch would copy the tensor first."""
    own = tensor.dtype in (torch.float32, torch.float64)
    return float(torch.linalg.vector_norm(tensor, dtype=None if own else torch.float32))


def require_same_layout(expected: Mapping[str, torch.Tensor], given: Tensors) -> None:
    """Refuse tensors that are not, name by name, those of a model.

    Args:
        expected: The model's tensors.
        given: Tensors from elsewhere.

    Raises:
        TensorsError: A name, shape or dtype differs, or a value is not finite.
    """
    require_layout(expected, given)
    require_finite(given)


def require_layout(expected: Mapping[str, torch.Tensor], given: Tensors) -> None:
    """The same, whatever the values.

    Args:
        expected: The model's tensors.
        given: Tensors from elsewhere.

    Raises:
        TensorsError: A name, shape or dtype differs.
    """
    if names := sorted(expected.keys() ^ given.keys()):
        raise TensorsError(f"tensors missing or unknown: {', '.join(names[:3])}")
    for name, tensor in expected.items():
        other = given[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise TensorsError(
                f"{name} is {other.dtype} {list(other.shape)}, "
                f"the model's is {tensor.dtype} {list(tensor.shape)}"
            )


def require_finite(tensors: Tensors) -> None:
    """Refuse values that are no finite numbers.

    Args:
        tensors: Named tensors.

    Raises:
        TensorsError: One holds such a value.
    """
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise TensorsError(f"{name} holds NaN or infinity")


def _finite(tensor: torch.Tensor) -> bool:
    """Whether every value is; by the extremes, which reads memory once (NaN is one of them)."""
    if tensor.is_complex():
        return _finite(torch.view_as_real(tensor))
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # torch compares no float8
        tensor = tensor.float()
    least, greatest = torch.aminmax(tensor)
    return math.isfinite(least.item()) and math.isfinite(greatest.item())
