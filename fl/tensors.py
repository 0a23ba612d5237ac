"""A model as named tensors, and those as bytes: safetensors and a digest. No pickle.

The format is https://github.com/huggingface/safetensors: a length, a JSON header with names,
shapes and dtypes, then the raw values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError

from fl.errors import FederationError

Tensors = dict[str, torch.Tensor]


class TensorsError(FederationError):
    """Bytes are no tensors, or tensors are not those of the model."""


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Write tensors as safetensors.

    Args:
        tensors: Named tensors of any shape, dtype and device; tied ones are written twice.

    Returns:
        The encoded model, about as many bytes as its tensors hold.
    """
    seen: set[int] = set()
    plain: Tensors = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in seen else value
        seen.add(storage)
    return safetensors.torch.save(plain)


def decode(data: bytes) -> Tensors:
    """Read what `encode` wrote.

    Args:
        data: The encoded model.

    Returns:
        Its tensors, on the CPU, with the shapes and dtypes they had.

    Raises:
        TensorsError: The bytes are not safetensors.
    """
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # The last two are torch's, of shapes that hold no values and overflow its strides.
        reason = " ".join(str(error).split())
        raise TensorsError(
            f"not a safetensors model of {len(data)} bytes: {reason:.200}"
        ) from error


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


def digest(data: bytes) -> str:
    """SHA-256 of encoded bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def require_same_layout(expected: Mapping[str, torch.Tensor], given: Tensors) -> None:
    """Refuse tensors that are not, name by name, those of a model.

    Args:
        expected: The model's tensors.
        given: Tensors from elsewhere.

    Raises:
        TensorsError: A name, shape or dtype differs, or a value is not finite.
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
        if not torch.isfinite(other).all():
            raise TensorsError(f"{name} holds NaN or infinity")
