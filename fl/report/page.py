"""A report's page: numbers, plots and texts in one HTML file that loads nothing.

A run's folder holds what sites said of themselves, so all of it is text to this page: Jinja
escapes it, JSON keeps it inside its element, Vega draws it as text. The page's own policy lets no
script run but the two that it names by their digests, and lets nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.filesize import decimal

from fl import __version__
from fl.errors import FederationError
from fl.report import numbers
from fl.report.numbers import PHASES, Run, read_run

try:
    import altair
    import vl_convert

    from fl.report import charts
except ImportError as error:
    raise FederationError(
        f"a report needs two packages more ({error}): pip install 'fl-hpc[report]'"
    ) from error


GLOBAL = ("accuracy", "loss")
"""What sites measure of a global model."""


@dataclass(frozen=True)
class Setting:
    """A key and its value in every run.

    Attributes:
        key: The key's path.
        values: As text; `-` where a run has no such key.
    """

    key: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.values)) > 1


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write a report of one run, or of several beside each other.

    Args:
        folders: The runs' folders.
        out: The HTML file.

    Raises:
        FederationError: A run cannot be read, or the file cannot be written.
    """
    page = render([read_run(folder) for folder in folders], time.time())
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise FederationError(f"{out}: cannot be written ({error.strerror})") from error


def render(runs: Sequence[Run], now: float) -> str:
    """The page.

    Args:
        runs: What it shows.
        now: Unix seconds.

    Returns:
        HTML.
    """
    runs = _told_apart(runs)
    vega, script = _bundle(), _own("page.js")
    evaluated = any(ended.accuracy is not None for run in runs for ended in run.ended)
    at_sites = any(run.evaluations for run in runs)
    environment = Environment(
        loader=PackageLoader("fl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("page.html").render(
        runs=runs,
        read_at=now,
        evaluated=evaluated,
        at_sites=at_sites,
        site_phases=PHASES[:5],
        row_height=charts.ROW,
        settings=_settings(runs),
        charts=_charts(runs),
        tables=_tables(runs),
        css=Markup(_own("page.css")),  # noqa: S704  (this package's own)  # nosec B704
        vega=Markup(vega),  # noqa: S704  (vl_convert's own)  # nosec B704
        script=Markup(script),  # noqa: S704  (this package's own)  # nosec B704
        policy=_policy([vega, script]),
        version=__version__,
    )


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name in different folders are called by what differs of their paths."""
    names = Counter(run.name for run in runs)
    folders = [run.history.folder.resolve() for run in runs]
    above = os.path.commonpath([folder.parent for folder in folders])
    return [
        replace(run, name=str(folder.relative_to(above))) if names[run.name] > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, of the version that the charts are said in."""
    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=version
    ).replace("</script", "<\\/script")


def _own(name: str) -> str:
    return files("fl.report").joinpath(name).read_text()


def _policy(scripts: Sequence[str]) -> str:
    """Only these scripts, and nothing from anywhere; Vega makes functions of its expressions."""
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-eval' {allowed}"


def _charts(runs: Sequence[Run]) -> dict[str, Any]:
    """Every chart by the name that the page calls it by."""
    names = [run.name for run in runs]
    found = {
        "accuracy by round": charts.by_round("accuracy", names),
        "loss by round": charts.by_round("loss", names),
        "accuracy by time": charts.by_time("accuracy", names, max(run.seconds for run in runs)),
        "accuracy at sites": charts.by_round("accuracy", names, "evaluations"),
        "loss at sites": charts.by_round("loss", names, "evaluations"),
    }
    for index, run in enumerate(runs):
        found |= {f"run {index} {name}": chart for name, chart in _charts_of(run)}
    return found


def _charts_of(run: Run) -> list[tuple[str, dict[str, Any]]]:
    if not run.ended:
        return []
    sites = [site.client_id for site in run.sites]
    largest = max(site.bytes_down + site.bytes_up for site in run.sites)
    # Of a run that goes on, something may be missing in a round that has not ended.
    first, last = run.ended[0].round, run.ended[-1].round
    latest = max([last, *(missing.round for missing in run.missing)])
    return [
        *((f"global {name}", charts.by_site(name, sites, "at_sites")) for name in GLOBAL),
        *((metric, charts.by_site(metric, sites)) for metric in run.measured),
        *((f"aggregator {name}", charts.of_aggregator(name)) for name in run.changing),
        ("bytes", charts.bytes_by_site(sites, largest)),
        ("gantt", charts.gantt(first, last, sites)),
        ("missing", charts.missing(first, latest, sites)),
    ]


def _tables(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """What charts draw: of all runs together, and of each."""
    both = {
        "rounds": numbers.rounds_table(runs),
        "evaluations": numbers.evaluations_table(runs),
    }
    found = {"all": both}
    for index, run in enumerate(runs):
        found[f"run {index}"] = {
            "metrics": numbers.metrics_table(run),
            "at_sites": numbers.at_sites_table(run),
            "aggregator": numbers.aggregator_table(run),
            "spans": numbers.spans_table(run),
            "missing": numbers.missing_table(run),
            "bytes": numbers.bytes_table(run),
        }
    return found


def _settings(runs: Sequence[Run]) -> list[tuple[str, list[Setting], bool]]:
    """Tables of keys: a title, its rows, and whether it is open from the start."""
    rows = _beside([run.settings for run in runs])
    sites = [row for row in rows if row.key.startswith("clients.")]
    shared = [row for row in rows if not row.key.startswith("clients.")]
    found = [
        ("What all sites share", shared, False),
        ("Sites", sites, False),
        ("Versions at the server", _beside([run.versions for run in runs]), False),
    ]
    if len(runs) > 1:
        differing = [row for _, group, _ in found for row in group if row.differs]
        found.insert(0, ("What differs between the runs", differing, True))
    return found


def _beside(columns: Sequence[dict[str, str]]) -> list[Setting]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return [Setting(key, [column.get(key, "-") for column in columns]) for key in keys]


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _metric_name(metric: str) -> str:
    if metric == "epsilon":
        return "Privacy spent (epsilon)"
    if metric == "local_epsilon":
        return "Privacy spent by updates (epsilon of local_dp)"
    words = metric.replace("pre_val", "validation (before training)").replace("val_", "validation_")
    return words.replace("train_", "training_").replace("_", " ").capitalize()


def _ways(run: Run) -> str:
    """How its models travelled, and how many bytes each way had."""
    told = []
    for way, sites in run.ways.items():
        down, up = sum(s.bytes_down for s in sites), sum(s.bytes_up for s in sites)
        names = "" if len(run.ways) == 1 else f" ({', '.join(site.client_id for site in sites)})"
        told.append(f"{way[0].upper()}{way[1:]}{names}: {decimal(down)} down, {decimal(up)} up.")
    return " ".join(told)


FILTERS: dict[str, Callable[..., str]] = {
    "number": _number,
    "bytes": decimal,
    "duration": _duration,
    "moment": _moment,
    "metric_name": _metric_name,
    "ways": _ways,
}
