"""How a round's cost grows with clients, sites and the model, as slopes of log-log lines.

    python tests/private_loopback.py python -m benchmarks.growth [picture.svg]

Claim: twice the clients, the sites or the model cost at most 2.14 times the seconds (a slope of
1.1). Nobody trains. Clients are local; sites are Globus Compute's daemons on this machine, over
`fl sandbox`. What is small enough costs the loop's own milliseconds, so that a slope is fitted to
the upper half of its line; what each point costs stands beside it, since a slope falls also where
the small end gets slower. Three runs a point, each line three times from its start. No model is
above 2 GB: with one client its copies take 16 GB of memory.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import altair as alt

from benchmarks import verdict
from benchmarks.big_rounds import rounds, spread
from benchmarks.daemon_rounds import Sandbox

CLIENTS = (1, 4, 16, 64, 256, 1024)  # with a model of 1 MB
SITES = (1, 2, 4, 8)  # with a model of 10 MB
MEGABYTES = (1, 4, 16, 64, 256, 1024, 2048)  # with one client
ROUNDS, REPEATS = 5, 3
SLOPE = 1.1

Line = dict[int, list[float]]
"""Seconds of warm rounds, by the number that grows."""


def main() -> None:
    """Measure the lines, fit, draw."""
    measured: dict[str, Callable[[], Line]] = {
        "clients, 1 MB": lambda: along(CLIENTS, lambda count: seconds(1, count)),
        "MB, one client": lambda: along(MEGABYTES, lambda size: seconds(size, 1)),
        "sites, 10 MB": sites,
    }
    lines = {}
    for name, measure in measured.items():
        lines[name] = measure()
        report(name, lines[name])
    if len(sys.argv) > 1:
        draw(lines, sys.argv[1])


def report(name: str, line: Line) -> None:
    """What each point of a line costs, and how the line grows."""
    print(f"{name}, {REPEATS} runs each: median (least to most)")
    for x, times in line.items():
        median = statistics.median(times)
        each = f"{1000 * median / x:.1f} ms each"
        rate = f"{x / median:.0f} MB/s"
        print(f"  {x:5}: {spread(times)} s, {rate if name.startswith('MB') else each}")
    verdict(f"slope of the upper half of {name}", slope(line), at_most=SLOPE)


def along(points: Sequence[int], measure: Callable[[int], list[float]]) -> Line:
    """A line, from its start each time."""
    line: Line = {point: [] for point in points}
    for _ in range(REPEATS):
        for point in points:
            line[point] += measure(point)
    return line


def seconds(megabytes: float, clients: int) -> list[float]:
    """Of the warm rounds of one run."""
    return [entry["seconds"]["total"] for entry in rounds(megabytes, clients, ROUNDS)]


def sites() -> Line:
    """The same of runs over daemons, which are deployed once for the most sites."""
    with tempfile.TemporaryDirectory(prefix="fl-bench.") as name:
        sandbox = Sandbox(Path(name), [f"site-{letter}" for letter in "abcdefgh"])
        try:
            sandbox.deploy()
            return along(SITES, lambda count: sandbox.rounds(10, files=True, sites=count))
        finally:
            sandbox.take_down()


def slope(line: Line) -> float:
    """The exponent by which the upper half of a line grows: least squares of the logarithms."""
    points = [(math.log(x), math.log(statistics.median(times))) for x, times in line.items()]
    upper = points[len(line) // 2 :]
    xs, ys = zip(*upper, strict=True)
    return statistics.linear_regression(xs, ys).slope


def draw(lines: dict[str, Line], file: str) -> None:
    """The lines, on logarithmic axes."""
    rows = [
        {"of": name, "number": x, "seconds": statistics.median(times)}
        for name, line in lines.items()
        for x, times in line.items()
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
