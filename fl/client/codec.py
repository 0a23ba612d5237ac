"""Whether zstd over an update saves more time than it costs, by what is measured at the site."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fl.compression import compress, decompress, is_changed
from fl.config import CompressorConfigs
from fl.tensors import Tensors

SAMPLE = 1 << 20
"""Numbers of the largest tensor that both are tried on."""

Made = TypeVar("Made")


def chosen(
    update: Tensors, configs: CompressorConfigs, bytes_per_second: float
) -> CompressorConfigs:
    """The format with `lossless_compressor: auto` decided.

    zstd is taken where the bytes that it saves would take longer on their way than it takes to
    compress them here and to read them at the server, which is taken to be as fast. Both give the
    server the same numbers.

    Args:
        update: What will be sent; any dtype and device.
        configs: The format that is wanted.
        bytes_per_second: The speed of the way, as far as it is known.

    Returns:
        The format; `configs` itself where nothing is to be decided.

    Raises:
        TensorsError: A number is not finite, or too large for the format.
    """
    if not configs.enable_compression or configs.lossless_compressor != "auto":
        return configs
    plain = configs.model_copy(update={"lossless_compressor": None, "param_cutoff": 0})
    zstd = plain.model_copy(update={"lossless_compressor": "zstd"})
    sample = _sample(update, configs)
    narrow, casting = _timed(lambda: compress(sample, plain))
    frames, compressing = _timed(lambda: compress(sample, zstd))
    _, reading = _timed(lambda: decompress(frames, sample, zstd))
    saved = (_bytes(narrow) - _bytes(frames)) / bytes_per_second
    # What has the cast in it cannot be shorter: where it was, the process was held up in the cast.
    better = "zstd" if saved > max(compressing - casting, 0.0) + reading else None
    return configs.model_copy(update={"lossless_compressor": better})


def _sample(update: Tensors, configs: CompressorConfigs) -> Tensors:
    """The first numbers of the largest tensor that the format changes."""
    changed = {name: tensor for name, tensor in update.items() if is_changed(tensor, configs)}
    if not changed:
        return {}
    largest = max(changed, key=lambda name: changed[name].numel())
    return {largest: changed[largest].detach().reshape(-1)[:SAMPLE].cpu()}


def _timed(make: Callable[[], Made]) -> tuple[Made, float]:
    started = time.perf_counter()
    made = make()
    return made, time.perf_counter() - started


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
