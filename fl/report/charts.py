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
    "numberFormat": "~g",  # Vega's own rounds ticks until two are called the same
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


def by_round(column: str, runs: Sequence[str], table: str = "rounds") -> dict[str, Any]:
    """A number of the global model over the rounds, a line a run.

    Args:
        column: `accuracy` or `loss`.
        runs: The runs' names.
        table: `rounds`, measured at the server; or `evaluations`, at the sites.

    Returns:
        The chart, of that table.
    """
    base = alt.Chart(_table(table, ["round", "loss", "accuracy"]))
    return _lines(base.encode(x=_quantity("round", "round")), column, runs)


UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}


def by_time(column: str, runs: Sequence[str], longest: float) -> dict[str, Any]:
    """A number of the global model at the server over the time of the rounds, a line a run.

    Args:
        column: `accuracy` or `loss`.
        runs: The runs' names.
        longest: Seconds that the longest run's rounds took: they decide the axis' unit.

    Returns:
        The chart, of the table `rounds`.
    """
    unit = next((unit for unit in ("hours", "minutes") if longest >= 2 * UNITS[unit]), "seconds")
    base = alt.Chart(_table("rounds", ["round", "loss", "accuracy", "seconds"]))
    timed = base.transform_calculate(time=f"datum.seconds / {UNITS[unit]}")
    time = alt.X("time:Q", title=f"{unit} of rounds", scale=alt.Scale(zero=True))
    return _lines(timed.encode(x=time), column, runs)


def _lines(base: alt.Chart, column: str, runs: Sequence[str]) -> dict[str, Any]:
    """A line a run; what is under the pointer is told of the nearest round."""
    shown = base.encode(
        y=_quantity(column, column),
        color=_colour("run", runs, SERIES, "stroke"),
    )
    points = shown.mark_point(opacity=0, size=80, filled=True)
    told = points.encode(tooltip=["run:N", "round:Q", alt.Tooltip(f"{column}:Q", format=".4")])
    return _spec(shown.mark_line() + _alone(shown, "run") + told)


def _alone(lines: alt.Chart, name: str, color: str = STRONG) -> alt.Chart:
    """A dot for what has one number, and so is no line."""
    counted = lines.transform_joinaggregate(numbers="count()", groupby=[name])
    alone = counted.transform_filter("datum.numbers === 1")
    dots: alt.Chart = alone.mark_point(filled=True, opacity=1, size=60, color=color)
    return dots


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
        coloured = shown.encode(color=_colour("site", sites, SERIES, "stroke"))
        return _spec(coloured.mark_line() + _alone(coloured, "site"))
    chosen = alt.param("chosen", value=sites[0], bind=_choice("site ", sites))
    all_lines = shown.mark_line(color=FAINT, strokeWidth=1)
    one = shown.transform_filter("datum.site === chosen")
    faint = all_lines + _alone(shown, "site", FAINT)
    strong = one.mark_line(color=STRONG, strokeWidth=3) + _alone(one, "site")
    return _spec((faint + strong).add_params(chosen))


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
    return _spec(shown.mark_line(color=STRONG) + _alone(shown, "name") + points)


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
    rounds["scale"] = {"domain": [first, last], "nice": False, "padding": 8}
    colours = ["var(--bad)", SERIES[2], SERIES[3]]
    chart = (
        alt.Chart(_table("missing", ["round"]))
        .mark_point(filled=True, size=60, opacity=1)
        .encode(
            x=rounds,
            y=_row(sites),
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=colours)),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds)),
            tooltip=["round:Q", "site:N", "kind:N", "reason:N"],
        )
    )
    return _spec(chart, height={"step": ROW})


def bytes_by_site(sites: Sequence[str], largest: float) -> dict[str, Any]:
    """What was sent to sites and came back.

    Args:
        sites: The sites' names.
        largest: Bytes of the site that had most: they decide the axis' unit.

    Returns:
        The chart, of the table `bytes`.
    """
    directions = ["models down", "updates up"]
    sizes = {"GB": 1e9, "MB": 1e6, "kB": 1e3}
    unit = next((unit for unit, size in sizes.items() if largest >= 2 * size), "kB")
    chart = (
        alt.Chart(_table("bytes", ["bytes"]))
        .transform_calculate(amount=f"datum.bytes / {sizes[unit]}")
        .mark_bar()
        .encode(
            x=alt.X("amount:Q", title=unit),
            y=_row(sites),
            color=_colour("direction", directions, SERIES),
            tooltip=["site:N", "way:N", "direction:N", alt.Tooltip("amount:Q", title=unit)],
        )
    )
    return _spec(chart, height={"step": ROW})


def _table(name: str, numbers: Sequence[str]) -> alt.NamedData:
    """A table that the page has, as CSV with these columns of numbers; the others are text."""
    return alt.NamedData(
        name=name, format=alt.CsvDataFormat(type="csv", parse=dict.fromkeys(numbers, "number"))
    )


def _quantity(column: str, title: str) -> Any:
    rounds = column == "round"
    axis = {"tickMinStep": 1, "labelExpr": "datum.value % 1 ? '' : datum.label"} if rounds else {}
    scale = {"zero": False, "nice": not rounds}  # there is no round 0
    return {"field": column, "type": "quantitative", "title": title, "scale": scale, "axis": axis}


def _row(sites: Sequence[str]) -> alt.Y:
    """A row for each site, in the configuration's order, whether anything is in it or not."""
    return alt.Y("site:N", title=None, scale=alt.Scale(domain=list(sites)))


def _colour(
    column: str, names: Sequence[str], colours: Sequence[str], symbol: str = "square"
) -> alt.Color:
    """A colour a name; beyond the colours that can be told apart they begin again."""
    repeated = [colours[index % len(colours)] for index in range(len(names))]
    return alt.Color(
        f"{column}:N",
        scale=alt.Scale(domain=list(names), range=repeated),
        legend=alt.Legend(symbolType=symbol),
    )


def _choice(name: str, options: Sequence[str]) -> alt.BindRadioSelect:
    return alt.binding_select(options=list(options), name=name)


def _spec(chart: alt.Chart | alt.LayerChart, height: Any = HEIGHT) -> dict[str, Any]:
    sized = chart.properties(width="container", height=height)
    return {**sized.to_dict(), "config": CONFIG}
