"""What updates look like on their way: narrower numbers, zstd over them, the largest alone.

Both sides know the format from the configuration, and the server knows the layout, so that an
update says nothing about its own sizes that would have to be believed. Only floating tensors of
more numbers than `param_cutoff` are changed, and by top-k or a narrower format only where that
makes them smaller; the rest travels as it is. No number of a buffer pays for others, as by top-k
and int8: a running variance must not fall below 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import torch
import zstandard
from torch.nn import functional

from fl.config import CompressorConfigs
from fl.tensors import Tensors, TensorsError, memory

BLOCK = 1024
"""Numbers that share a scale in int8."""
SCALE = "scale/"
"""What the names of int8's scales begin with."""
INDEX = "index/"
"""What the names of top-k's places begin with."""
LEVEL = 1
"""Of zstd: higher ones cost several times the time and gain a few percent."""

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


def compress(
    tensors: Mapping[str, torch.Tensor],
    configs: CompressorConfigs,
    buffers: AbstractSet[str] = frozenset(),
) -> Tensors:
    """An update as it travels.

    Args:
        tensors: The update; any dtype and device.
        configs: The format; `auto` is decided before, by `fl.client.codec.chosen`.
        buffers: Names of the model's tensors that are no parameters.

    Returns:
        Tensors to encode: each under its own name, narrower or as a zstd frame (uint8), and
        `scale/NAME` where it is int8. With `top_k`, the largest numbers alone, in one dimension,
        and their places in the flat tensor, ascending, as `index/NAME`.

    Raises:
        TensorsError: A number is not finite, or too large for the format.
    """
    coded: Tensors = {}
    of_buffers = _of_buffers(configs)
    for name, tensor in tensors.items():
        its = of_buffers if name in buffers else configs
        if not is_changed(tensor, its):
            coded[name] = tensor
            continue
        values = tensor.detach().cpu()
        if its.top_k is not None:
            coded[name], coded[INDEX + name] = _largest(name, values, its.top_k)
            continue
        lossy = _narrower(values, its)
        if lossy == "int8":
            values, coded[SCALE + name] = _quantized(name, values)
        elif lossy is not None:
            values = _cast(name, values, lossy)
        coded[name] = _deflated(values) if its.lossless_compressor == "zstd" else values
    return coded


def decompress(
    coded: Tensors,
    layout: Tensors,
    configs: CompressorConfigs,
    buffers: AbstractSet[str] = frozenset(),
) -> Tensors:
    """What `compress` was given, as far as the format keeps it.

    Args:
        coded: What arrived: anything.
        layout: Tensors of the names, shapes and dtypes that are expected. No more memory is taken
            than they have.
        configs: The format.
        buffers: As `compress` was given them.

    Returns:
        Tensors in the dtypes of `layout`; those that travel as they are, as they came.

    Raises:
        TensorsError: Something else arrived.
    """
    left = dict(coded)
    tensors: Tensors = {}
    of_buffers = _of_buffers(configs)
    for name, like in layout.items():
        its = of_buffers if name in buffers else configs
        if name not in left:
            raise TensorsError(f"tensors missing or unknown: {name}")
        values = left.pop(name)
        if is_changed(like, its) and its.top_k is not None:
            values = _dense(name, values, left.pop(INDEX + name, None), like, its.top_k)
        elif is_changed(like, its):
            dtype = NARROW.get(_narrower(like, its) or "", like.dtype)
            if _is_frame(values, its):
                values = _inflated(name, values, like.shape, dtype)
            _require(name, values, like.shape, dtype)
            if dtype == torch.int8:
                values = _widened(name, values, left.pop(SCALE + name, None))
            values = values.to(like.dtype)
        tensors[name] = values
    if left:
        raise TensorsError(f"tensors missing or unknown: {', '.join(sorted(left)[:3])}")
    return tensors


def is_changed(tensor: torch.Tensor, configs: CompressorConfigs) -> bool:
    """Whether a format changes such a tensor; only its dtype and size count."""
    return (
        configs.enable_compression
        and tensor.is_floating_point()
        and tensor.numel() > configs.param_cutoff
        and (configs.top_k is None or _is_smaller(tensor, configs.top_k))
    )


def _of_buffers(configs: CompressorConfigs) -> CompressorConfigs:
    """The format of buffers."""
    if configs.top_k is None and configs.lossy_compressor != "int8":
        return configs
    return configs.model_copy(update={"top_k": None, "lossy_compressor": None})


def _narrower(tensor: torch.Tensor, configs: CompressorConfigs) -> str | None:
    """The numbers that a format makes of a tensor's, if they are narrower than those."""
    lossy = configs.lossy_compressor
    return lossy if lossy is not None and NARROW[lossy].itemsize < tensor.itemsize else None


def _is_smaller(tensor: torch.Tensor, share: float) -> bool:
    """Whether the largest numbers and their places take no more than all numbers do."""
    return share * (tensor.itemsize + _index_type(tensor).itemsize) <= tensor.itemsize


def _is_frame(values: torch.Tensor, configs: CompressorConfigs) -> bool:
    """Whether a zstd frame was sent, or has to be one; no format's numbers are of uint8."""
    by_site = configs.lossless_compressor == "auto" and values.dtype == torch.uint8
    return by_site or configs.lossless_compressor == "zstd"


def _cast(name: str, values: torch.Tensor, lossy: str) -> torch.Tensor:
    narrow = values.to(NARROW[lossy])
    if not all(math.isfinite(extreme.item()) for extreme in torch.aminmax(narrow)):
        raise TensorsError(f"{name} holds what is no finite number in {lossy}")
    return narrow


def _largest(name: str, values: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of greatest magnitude, and their places, ascending."""
    flat = values.reshape(-1)
    if not torch.isfinite(flat).all():
        raise TensorsError(f"{name} holds what is no finite number")
    places = flat.abs().topk(_count(flat, share), sorted=False).indices.sort().values
    return flat[places], places.to(_index_type(flat))


def _dense(
    name: str,
    values: torch.Tensor,
    places: torch.Tensor | None,
    like: torch.Tensor,
    share: float,
) -> torch.Tensor:
    """The tensor that has some numbers at some places, each once, and zeros elsewhere."""
    if places is None:
        raise TensorsError(f"tensors missing or unknown: {INDEX}{name}")
    shape = torch.Size([_count(like, share)])
    _require(name, values, shape, like.dtype)
    _require(INDEX + name, places, shape, _index_type(like))
    if places[0] < 0 or places[-1] >= like.numel() or not (places[1:] > places[:-1]).all():
        raise TensorsError(f"{INDEX}{name} is not places among {like.numel()}, each once, in order")
    dense = torch.zeros(like.numel(), dtype=like.dtype)
    dense[places.long()] = values
    return dense.view(like.shape)


def _count(tensor: torch.Tensor, share: float) -> int:
    return math.ceil(share * tensor.numel())


def _index_type(tensor: torch.Tensor) -> torch.dtype:
    return torch.int32 if tensor.numel() < 2**31 else torch.int64


def _quantized(name: str, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of whole numbers up to 127, and each block's scale, float32."""
    flat = values.reshape(-1).float()
    blocks = functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1).div_(127)
    if not math.isfinite(scale.max().item()):
        raise TensorsError(f"{name} holds what is no finite number in int8")
    divisor = torch.where(scale > 0, scale, 1.0)
    whole = (blocks / divisor[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return whole.view(-1)[: flat.numel()].reshape(values.shape), scale


def _widened(name: str, whole: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    flat = whole.reshape(-1)
    count = math.ceil(flat.numel() / BLOCK)
    if scale is None:
        raise TensorsError(f"tensors missing or unknown: {SCALE}{name}")
    _require(SCALE + name, scale, torch.Size([count]), torch.float32)
    values = functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK).float()
    values.mul_(scale[:, None])
    return values.view(-1)[: flat.numel()].view(whole.shape)


def _deflated(values: torch.Tensor) -> torch.Tensor:
    """A zstd frame. The numbers' first bytes come first, then their second: like beside like."""
    planes = values.contiguous().reshape(-1, 1).view(torch.uint8).t().contiguous()
    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=torch.get_num_threads())
    return torch.frombuffer(bytearray(compressor.compress(memory(planes))), dtype=torch.uint8)


def _inflated(
    name: str, frame: torch.Tensor, shape: torch.Size, dtype: torch.dtype
) -> torch.Tensor:
    """The tensor in a zstd frame, which must say of itself that it has the expected size."""
    expected = math.prod(shape) * dtype.itemsize
    try:
        data = memory(frame)
        promised = zstandard.get_frame_parameters(data).content_size
        if promised != expected:
            raise TensorsError(f"{name} would have {promised} bytes, {expected} were expected")
        planes = zstandard.ZstdDecompressor().decompress(data, max_output_size=expected)
    except zstandard.ZstdError as error:
        raise TensorsError(f"{name} is no zstd frame: {error}") from error
    values = torch.frombuffer(bytearray(planes), dtype=torch.uint8)
    return values.view(dtype.itemsize, -1).t().reshape(-1).view(dtype).view(shape)


def _require(name: str, tensor: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise TensorsError(
            f"{name} arrived as {tensor.dtype} {list(tensor.shape)}, "
            f"{dtype} {list(shape)} was expected"
        )
