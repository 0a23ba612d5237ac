"""How large the report of 50 sites and 500 rounds is, and how soon a browser shows it.

    pip install playwright && apt-get install chromium
    python -m benchmarks.report

Claim: below 5 MB, and open within a second, at the median. The run's folder is written by the real
recorder, of events that are made up. "Open" is the load event, "plots" the moment at which the
plots of the first screen are drawn; the others are drawn when they are about to be seen. What other
programs take of the processors is in these times: the load of the machine is printed with them.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks import verdict
from fl.report.page import write_report
from tests.recorded import Run

SITES, ROUNDS, OPENED = 50, 500, 9

DRAWN = """() => [...document.querySelectorAll("figure[data-chart]")]
    .filter((figure) => figure.getBoundingClientRect().top < innerHeight)
    .every((figure) => figure.querySelector("svg")) && performance.now()"""
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    """Record, write, open, compare."""
    with tempfile.TemporaryDirectory(prefix="fl-bench.") as folder:
        run = record(Path(folder))
        report = Path(folder) / "report.html"
        started = time.perf_counter()
        write_report([run], report)
        print(f"written in {time.perf_counter() - started:.1f} s")
        size = report.stat().st_size
        times = open_often(report)
        for name, measured in times.items():
            spread = f"{min(measured):.0f} to {max(measured):.0f}"
            print(f"{name} {statistics.median(measured):.0f} ms ({spread})")
        verdict("MB of the report", size / 1e6, at_most=5)
        verdict("milliseconds until it is open", statistics.median(times["open"]), at_most=1000)
        print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def record(folder: Path) -> Path:
    """A run in which every fiftieth update is missing."""
    draw = random.Random(7)  # noqa: S311  (numbers, no secrets)
    run = Run([f"site-{number:02}" for number in range(SITES)], folder)
    for number in range(1, ROUNDS + 1):
        run.begin(number)
        missing = [name for name in run.names if draw.random() < 1 / SITES]
        failures = [run.fail(number, name, "its endpoint is offline") for name in missing]
        updates = [
            run.answer(
                number,
                name,
                train=draw.uniform(1.0, 100.0),
                train_loss=draw.random() / number,
                val_loss=draw.random() / number,
                val_accuracy=draw.random(),
            )
            for name in run.names
            if name not in missing
        ]
        run.end(number, updates, failures)
    run.close()
    return run.folder


def open_often(report: Path) -> dict[str, list[float]]:
    """Milliseconds from the navigation to a moment, of pages opened one after the other."""
    chromium = shutil.which("chromium") or sys.exit("no chromium: apt-get install chromium")
    times: dict[str, list[float]] = {"open": [], "plots": []}
    with sync_playwright() as playwright:
        # Its own sandbox cannot be had in a container, nor is it needed for a page of our own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(OPENED):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(report.as_uri())
            drawn = page.wait_for_function(DRAWN, polling=10)
            times["open"].append(page.evaluate(LOADED))
            times["plots"].append(drawn.json_value())
            page.close()
        browser.close()
    return times


if __name__ == "__main__":
    main()
