"""Whether `lossless_compressor: auto` takes what is faster, on ways of different speed.

    python -m benchmarks.auto_format [MB]

Claim: on every way, an update by `auto` is at the server within 10 % of the time that the better of
zstd and none takes, but for what deciding costs, which is printed. The way is a pause of as many
seconds as its bytes take at a speed: only its ends, coding and decoding, are real. All in turns, in
the same run.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from benchmarks import verdict
from fl.client.codec import chosen
from fl.compression import compress, decompress
from fl.config import CompressorConfigs
from fl.tensors import Tensors, decode, encode

SPEEDS = (10, 30, 100, 300, 1000)
"""MB a second: from a slow link to one machine's memory."""
LAYERS, REPEATS = 10, 5


def main() -> None:
    """A row for each format and way."""
    megabytes = int((*sys.argv[1:], "40")[0])
    update = difference(megabytes)
    print(f"{megabytes} MB, seconds to the server: median (least to most) of {REPEATS}")
    print("numbers   MB/s  none                    zstd                    auto")
    ratios = [
        compare(update, lossy, speed * 1e6) for lossy in (None, "bf16", "int8") for speed in SPEEDS
    ]
    verdict("auto without deciding / the better, at worst", max(ratios), at_most=1.1)


def difference(megabytes: int) -> Tensors:
    """What a step of training may add: small numbers, few of which are large."""
    draw = torch.Generator().manual_seed(0)
    rows = megabytes * 250_000 // LAYERS // 1000
    return {
        f"layer.{index}": 1e-3 * torch.randn(rows, 1000, generator=draw) ** 3
        for index in range(LAYERS)
    }


def compare(update: Tensors, lossy: str | None, bytes_per_second: float) -> float:
    """Each way of sending in turns; the time of `auto`, without deciding, to the better's."""
    formats = {name: configs(lossy, name) for name in (None, "zstd", "auto")}
    times: dict[str | None, list[float]] = {name: [] for name in formats}
    decided: dict[str | None, list[float]] = {name: [] for name in formats}
    for _ in range(REPEATS):
        for name, format_ in formats.items():
            seconds, deciding = send(update, format_, bytes_per_second)
            times[name].append(seconds)
            decided[name].append(deciding)
    auto, deciding = statistics.median(times["auto"]), statistics.median(decided["auto"])
    best = min(statistics.median(times[None]), statistics.median(times["zstd"]))
    took = chosen(update, formats["auto"], bytes_per_second).lossless_compressor
    print(
        f"{lossy or 'fp32':6} {bytes_per_second / 1e6:7.0f}  "
        + "  ".join(f"{spread(values):22}" for values in times.values())
        + f" took {took or 'none'}, {auto / best:.2f} of the better; deciding took {deciding:.3f}"
    )
    return (auto - deciding) / best


def configs(lossy: str | None, lossless: str | None) -> CompressorConfigs:
    """One format; of neither, nothing is changed."""
    return CompressorConfigs.model_validate(
        {
            "enable_compression": bool(lossy or lossless),
            "lossy_compressor": lossy,
            "lossless_compressor": lossless,
        }
    )


def send(
    update: Tensors, format_: CompressorConfigs, bytes_per_second: float
) -> tuple[float, float]:
    """Seconds from a site's tensors to the server's, and those of them that deciding took."""
    started = time.perf_counter()
    taken = chosen(update, format_, bytes_per_second)
    deciding = time.perf_counter() - started
    data = encode(compress(update, taken))
    time.sleep(len(data) / bytes_per_second)
    decompress(decode(bytearray(data)), update, format_)
    return time.perf_counter() - started, deciding


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
