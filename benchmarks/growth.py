"""How a round's cost grows with clients, sites and the model, as slopes of log-log lines.

    python tests/private_loopback.py python -m benchmarks.growth [picture.svg]

Claim: twice the clients, the sites or the model cost at most 2.14 times the seconds (a slope of
1.1). Nobody trains. Clients are local; sites are Globus Compute's daemons on this machine, over
`fl sandbox`. What is small enough costs the loop's own milliseconds, so that a slope is fitted to
the upper half of its line. No model is above 2 GB: with one client its copies take 16 GB of memory.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import altair as alt

from benchmarks.big_rounds import rounds
from benchmarks.daemon_rounds import Sandbox

CLIENTS = (1, 4, 16, 64, 256, 1024)  # with a model of 1 MB
SITES = (1, 2, 4, 8)  # with a model of 10 MB
MEGABYTES = (1, 4, 16, 64, 256, 1024, 2048)  # with one client
ROUNDS = 5


def main() -> None:
    """Measure the lines, fit, draw."""
    measured: dict[str, Callable[[], dict[int, float]]] = {
        "clients, 1 MB": lambda: {count: seconds(1, count) for count in CLIENTS},
        "MB, one client": lambda: {size: seconds(size, 1) for size in MEGABYTES},
        "sites, 10 MB": sites,
    }
    lines = {}
    for name, measure in measured.items():
        lines[name] = line = measure()
        print(f"{name:14} " + "  ".join(f"{x}: {y:.3f} s" for x, y in line.items()))
        print(f"{'':14} slope of the upper half: {slope(line):.2f}", flush=True)
    if len(sys.argv) > 1:
        draw(lines, sys.argv[1])


def seconds(megabytes: float, clients: int) -> float:
    """The median of the warm rounds of one run."""
    run = rounds(megabytes, clients, ROUNDS)
    return statistics.median(entry["seconds"]["total"] for entry in run)


def sites() -> dict[int, float]:
    """The same of runs over daemons, which are deployed once for the most sites."""
    with tempfile.TemporaryDirectory(prefix="fl-bench.") as name:
        sandbox = Sandbox(Path(name), [f"site-{letter}" for letter in "abcdefgh"])
        try:
            sandbox.deploy()
            return {
                count: statistics.median(sandbox.rounds(10, files=True, sites=count))
                for count in SITES
            }
        finally:
            sandbox.take_down()


def slope(line: dict[int, float]) -> float:
    """The exponent by which the upper half of a line grows: least squares of the logarithms."""
    upper = [(math.log(x), math.log(y)) for x, y in line.items()][len(line) // 2 :]
    xs, ys = zip(*upper, strict=True)
    return statistics.linear_regression(xs, ys).slope


def draw(lines: dict[str, dict[int, float]], file: str) -> None:
    """The lines, on logarithmic axes."""
    rows = [
        {"of": name, "number": x, "seconds": y}
        for name, line in lines.items()
        for x, y in line.items()
    ]
    scale = alt.Scale(type="log")
    chart = (
        alt.Chart(alt.Data(values=rows), width=480, height=280)
        .mark_line(point=True)
        .encode(
            x=alt.X("number:Q", title="clients, sites, or MB of the model", scale=scale),
            y=alt.Y("seconds:Q", title="seconds a round", scale=scale),
            color=alt.Color("of:N", title=None),
        )
    )
    chart.save(file)


if __name__ == "__main__":
    main()
