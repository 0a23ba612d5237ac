"""A report's plots, as Vega-Lite: what is drawn is said here, the browser draws it.

A chart names the tables that it draws (`fl.report.numbers` makes them); the page hands them to it,
so that two charts of one table do not carry it twice. Colours are the page's CSS variables, which
differ between light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from fl.report.numbers import PHASES, SERVER

SERIES = [f"var(--series-{number})" for number in range(1, 9)]
"""Colours of things that are told apart."""
FAINT, STRONG = "var(--faint)", "var(--series-1)"

PHASE_COLOURS = {
    "queue": "var(--faint)",
    "receive": SERIES[0],
    "train": SERIES[1],
    "send": SERIES[4],
    "wait": SERIES[6],
    "aggregate": SERIES[2],
    "evaluate": SERIES[3],
}

CONFIG: dict[str, Any] = {
    "aria": False,  # a plot is one picture with a text; its thousand marks are no reading
    "background": "transparent",
    "font": "system-ui, sans-serif",  # the page's: Vega measures texts by it
    "view": {"stroke": "transparent"},
    "axis": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 12,
        "labelFlush": False,
        "labelSeparation": 8,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {
        "orient": "top",
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "title": None,
        "symbolStrokeWidth": 3,
    },
}
HEIGHT = 240
ROW = 18
"""Pixels of a site's row."""


def by_round(
    column: str, across: str, runs: Sequence[str], table: str = "rounds"
) -> dict[str, Any]:
    """A number of the global model over the rounds, or over time, a line a run.

    Args:
        column: `accuracy` or `loss`.
        across: `round` or `minutes`.
        runs: The runs' names.
        table: `rounds`, measured at the server; or `evaluations`, without time, at the sites.

    Returns:
        The chart, of that table.
    """
    times = ["minutes"] if table == "rounds" else []
    base = alt.Chart(_table(table, ["round", "loss", "accuracy", *times])).encode(
        x=_quantity(across, "round" if across == "round" else "minutes since the first round"),
        y=_quantity(column, column),
        color=_colour("run", runs, SERIES),
    )
    tooltip = ["run:N", "round:Q", f"{column}:Q", *(f"{time}:Q" for time in times)]
    points = base.mark_point(opacity=0, size=80, filled=True).encode(tooltip=tooltip)
    return _spec(base.mark_line() + points)


def by_site(metric: str, sites: Sequence[str], table: str = "metrics") -> dict[str, Any]:
    """What every site measured, a line a site; of many sites, one is picked out.

    Args:
        metric: One of `fl.report.numbers.SITE_METRICS`; of `at_sites`, accuracy or loss.
        sites: The sites' names.
        table: `metrics`, of a site's own training; or `at_sites`, of the global model.

    Returns:
        The chart, of that table.
    """
    base = alt.Chart(_table(table, ["round", metric])).encode(
        x=_quantity("round", "round"),
        y=_quantity(metric, metric.replace("_", " ")),
        detail="site:N",
        tooltip=["site:N"],
    )
    shown = base.transform_filter(f"isValid(datum.{metric})")
    if len(sites) <= len(SERIES):
        return _spec(shown.mark_line().encode(color=_colour("site", sites, SERIES)))
    chosen = alt.param("chosen", value=sites[0], bind=_choice("site ", sites))
    all_lines = shown.mark_line(color=FAINT, strokeWidth=1)
    one = shown.transform_filter("datum.site === chosen").mark_line(color=STRONG, strokeWidth=3)
    return _spec((all_lines + one).add_params(chosen))


def of_aggregator(name: str) -> dict[str, Any]:
    """One of the aggregator's own numbers by round.

    Args:
        name: The number's.

    Returns:
        The chart, of the table `aggregator`.
    """
    base = alt.Chart(_table("aggregator", ["round", "number"])).encode(
        x=_quantity("round", "round"),
        y=_quantity("number", name),
        tooltip=["round:Q", "number:Q"],
    )
    its_own = base.transform_filter(alt.FieldEqualPredicate(field="name", equal=name))
    shown = its_own.transform_filter("isValid(datum.number)")
    points = shown.mark_point(opacity=0, size=80, filled=True)
    return _spec(shown.mark_line(color=STRONG) + points)


def gantt(first: int, last: int, sites: Sequence[str]) -> dict[str, Any]:
    """One round, a row a site, from its start to its end; which round is chosen by a slider.

    Args:
        first: The first round that there is.
        last: The last one.
        sites: The sites' names.

    Returns:
        The chart, of the tables `spans` and `missing`.
    """
    numbers = ["round", "began", *PHASES]
    number = alt.param(
        "number", value=last, bind=alt.binding_range(min=first, max=last, step=1, name="round ")
    )
    before = dict(zip(PHASES, ["began", *PHASES], strict=False))
    row = _row([SERVER, *sites])
    spans = (
        alt.Chart(_table("spans", numbers))
        .transform_filter("datum.round === number")
        .transform_fold(list(PHASES), as_=["phase", "end"])
        .transform_calculate(start=f"datum[{before}[datum.phase]]", seconds="datum.end-datum.start")
        .transform_filter("datum.seconds > 0")
        .mark_bar()
        .encode(
            x=alt.X("start:Q", title="seconds into the round"),
            x2="end:Q",
            y=row,
            color=_colour("phase", list(PHASES), list(PHASE_COLOURS.values())),
            tooltip=["site:N", "phase:N", alt.Tooltip("seconds:Q", format=".3~f")],
        )
    )
    missing = (
        alt.Chart(_table("missing", ["round"]))
        .transform_filter("datum.round === number")
        .mark_text(align="left", fontSize=12, color="var(--bad)")
        .encode(x=alt.datum(0), y=row, text="kind:N", tooltip=["site:N", "kind:N", "reason:N"])
    )
    return _spec((spans + missing).add_params(number), height={"step": ROW})


def missing(first: int, last: int, sites: Sequence[str]) -> dict[str, Any]:
    """In which rounds who failed, was late or lost.

    Args:
        first: The first round that there is.
        last: The last one.
        sites: The sites' names.

    Returns:
        The chart, of the table `missing`.
    """
    kinds = ["failed", "late", "lost"]
    rounds = _quantity("round", "round")
    rounds["scale"] = {"domain": [first, last], "nice": True, "padding": 8}
    colours = ["var(--bad)", SERIES[2], SERIES[3]]
    chart = (
        alt.Chart(_table("missing", ["round"]))
        .mark_point(filled=True, size=60, opacity=1)
        .encode(
            x=rounds,
            y=_row(sites),
            color=_colour("kind", kinds, colours),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds)),
            tooltip=["round:Q", "site:N", "kind:N", "reason:N"],
        )
    )
    return _spec(chart, height={"step": ROW})


def bytes_by_site(sites: Sequence[str]) -> dict[str, Any]:
    """What was sent to sites and came back.

    Args:
        sites: The sites' names.

    Returns:
        The chart, of the table `bytes`.
    """
    directions = ["models down", "updates up"]
    chart = (
        alt.Chart(_table("bytes", ["megabytes"]))
        .mark_bar()
        .encode(
            x=alt.X("megabytes:Q", title="MB"),
            y=_row(sites),
            color=_colour("direction", directions, SERIES),
            tooltip=["site:N", "direction:N", "megabytes:Q"],
        )
    )
    return _spec(chart, height={"step": ROW})


def _table(name: str, numbers: Sequence[str]) -> alt.NamedData:
    """A table that the page has, as CSV with these columns of numbers; the others are text."""
    return alt.NamedData(
        name=name, format=alt.CsvDataFormat(type="csv", parse=dict.fromkeys(numbers, "number"))
    )


def _quantity(column: str, title: str) -> Any:
    axis = {"tickMinStep": 1, "format": "d"} if column == "round" else {}
    scale = {"zero": False}
    return {"field": column, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _row(sites: Sequence[str]) -> alt.Y:
    """A row for each site, in the configuration's order, whether anything is in it or not."""
    return alt.Y("site:N", title=None, scale=alt.Scale(domain=list(sites)))


def _colour(column: str, names: Sequence[str], colours: Sequence[str]) -> alt.Color:
    """A colour a name; beyond the colours that can be told apart they begin again."""
    repeated = [colours[index % len(colours)] for index in range(len(names))]
    return alt.Color(f"{column}:N", scale=alt.Scale(domain=list(names), range=repeated))


def _choice(name: str, options: Sequence[str]) -> alt.BindRadioSelect:
    return alt.binding_select(options=list(options), name=name)


def _spec(chart: alt.Chart | alt.LayerChart, height: Any = HEIGHT) -> dict[str, Any]:
    sized = chart.properties(width="container", height=height)
    return {**sized.to_dict(), "config": CONFIG}
