"""Makes the pictures of a run and of its report, of two trainings that it does itself.

    pip install playwright && apt-get install chromium
    python docs/pictures/runs.py

Digits are trained over four sites in processes of this machine, twice, and two workers of the first
run are killed on the way. It takes some minutes and writes beside itself what a terminal shows as
SVG, and the report as PNG at 1280 and 390 pixels, light and dark.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console, RenderableType

from fl.history import find_run, read_history
from fl.progress import Progress
from fl.report.page import write_report
from fl.server.events import RoundStarted
from fl.status import show, status

PICTURES = Path(__file__).parent
EXPERIMENT = Path(__file__).parents[2] / "examples" / "digits"
FL_RUN = Path(sys.executable).with_name("fl-run")
SITES = ["site-a", "site-b", "site-c", "site-d"]
ROUNDS = 20
KILLED_AFTER = (5, 11)
"""Rounds after which a worker is killed."""
SHOWN = 2800
"""Pixels of the report's height that a picture has."""


def main() -> None:
    """Train, look, train again, compare."""
    with tempfile.TemporaryDirectory(prefix="fl-pictures.") as folder:
        os.chdir(folder)  # so that the folders that are shown are short
        first = train(Path("momentum"), killing=True)
        terminal("run", lambda: live_table(first))
        second = train(Path("plain"), "client_configs.train_configs.optim_args={lr: 0.05}")
        runs = [first.rename("momentum-0.9"), second.rename("no-momentum")]
        report = Path("report.html").absolute()
        write_report(runs, report)
        photograph(report)


def train(folder: Path, *overrides: str, killing: bool = False) -> Path:
    """One run to its end; its folder. With `killing`, `fl status` is photographed on the way."""
    settings = [
        f"server_configs.num_clients={len(SITES)}",
        f"server_configs.num_global_epochs={ROUNDS}",
        f"server_configs.logging_output_dirname={folder / 'runs'}",
        "data_configs.dataset_kwargs.partition_strategy=dirichlet",
        *overrides,
    ]
    process = subprocess.Popen(
        [FL_RUN, EXPERIMENT, *(f"--set={setting}" for setting in settings)],
        stdout=subprocess.DEVNULL,
    )
    try:
        for number in KILLED_AFTER if killing else ():
            wait_for(lambda number=number: rounds_of(folder) >= number)
            workers(process)[-1].kill()
        if killing:
            run = find_run(folder / "runs")
            wait_for(lambda: status(run).errors != [] and rounds_of(folder) > KILLED_AFTER[-1])
            terminal("status", lambda: show(status(run), time.time()))
        process.wait(timeout=600)
    finally:
        process.kill()
    return find_run(folder / "runs")


def rounds_of(folder: Path) -> int:
    """Rounds that have ended."""
    return sum(len(file.read_text().splitlines()) for file in folder.glob("runs/*/metrics.jsonl"))


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of local sites."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"not within {seconds} s: the run of these pictures has failed")
        time.sleep(0.1)


def live_table(run: Path) -> RenderableType:
    """What fl-run showed at its end."""
    progress = Progress(ROUNDS, SITES, Console(file=io.StringIO()))
    for ended in read_history(run).rounds:
        progress(RoundStarted(ended.round, SITES))
        for update in ended.updates:
            progress(update)
        progress(ended)
    return progress.screen()


def terminal(name: str, screen: Callable[[], RenderableType]) -> None:
    """A terminal with this on it, as SVG; without the fonts that rich would load for it."""
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(screen())
    svg = console.export_svg(title={"run": "fl-run", "status": "fl status"}[name])
    (PICTURES / f"{name}.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S))


def photograph(report: Path) -> None:
    """The report in a browser, whole, at two widths."""
    chromium = shutil.which("chromium") or sys.exit("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        # Its own sandbox cannot be had in a container, nor is it needed for a page of our own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in (1280, 390):
            for scheme in ("light", "dark"):
                page_picture(browser, report, width, scheme)
        browser.close()


def page_picture(browser: Browser, report: Path, width: int, scheme: Any) -> None:
    """One picture; an error or a sideways scroll of the page ends it all."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("pageerror", lambda error: sys.exit(f"the report's script: {error}"))
    page.goto(report.as_uri())
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelectorAll('figure:not(:has(.plot svg))').length === 0")
    if page.evaluate("document.documentElement.scrollWidth") > width:
        sys.exit(f"the report is wider than {width} pixels")
    page.screenshot(
        path=PICTURES / f"report-{width}-{scheme}.png",
        full_page=True,
        clip={"x": 0, "y": 0, "width": width, "height": SHOWN},
    )
    page.close()


if __name__ == "__main__":
    main()
