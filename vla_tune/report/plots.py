"""The report's figures, as SVG that takes its ink from the page and so is legible on light and on dark."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vla_tune.report.runs import Row, Run, layer_series
from vla_tune.report.tables import by_task, by_type, headline

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for `currentColor`, which matplotlib does not know."""
PALETTE = ("#2f83c5", "#d98a1e", "#12a078", "#c4609a", "#8a7fd0", "#c9512b")
"""Mid-tones after Okabe and Ito: told apart by colour-blind readers, legible on white and on black."""
GREY = "#8a8f98"
MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.")
MANY = 4
"""With more runs than this, legends name methods."""
SIZE = (4.3, 3.3)
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def frontier(runs: list[Run]) -> str | None:
    """What was kept against what was learnt: VQA after fine-tuning and closed-loop success, a point a run."""
    points = [(run, figures) for run in runs if (figures := headline(run))["vqa_after"] and figures["success"]]
    if not points:
        return None
    styles = run_styles(runs)
    with _figure("frontier") as (figure, ax, done):
        before = {figures["vqa_before"]["value"] for _, figures in points}
        for place, value in enumerate(sorted(before)):
            ax.axvline(100 * value, color=GREY, linestyle="--", linewidth=1.2, label=None if place else "VQA before")
        for run, figures in points:
            x, y = figures["vqa_after"], figures["success"]
            colour, _, marker = styles[run.label]
            ax.errorbar(
                *([100 * x["value"]], [100 * y["value"]]),
                xerr=_bars([x]),
                yerr=_bars([y]),
                fmt=marker,
                color=colour,
                elinewidth=1,
                label=run.label,
            )
        ax.set(xlabel="VQA accuracy after (%)", ylabel="closed-loop success (%)", ylim=(-3, 103))
        _legend(figure, ax, runs)
        return done()


def variants(rows: list[Row]) -> str | None:
    """A study's frontier: retention and success, a point a variant over all its seeds, as an SVG file of its own."""
    points = [row for row in rows if row["retention"] and row["success"]]
    if not points:
        return None
    with _figure("variants", height=1.5 * SIZE[1], width=2 * SIZE[0]) as (figure, ax, _):
        for number, row in enumerate(points):
            x, y = row["retention"], row["success"]
            colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE) % len(MARKERS)]
            place = [100 * x["value"]], [100 * y["value"]]
            ax.errorbar(*place, xerr=_bars([x]), yerr=_bars([y]), fmt=marker, color=colour, elinewidth=1, label=row["label"])
        ax.set(xlabel="VQA retention (%)", ylabel="closed-loop success (%)")
        figure.legend(loc="outside right upper")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None})
        return stream.getvalue()


def streams(rows: list[Row]) -> str:
    """What is known at a stream's end against the parameters trained a task (hollow) and added in all, as an SVG file of its own."""
    with _figure("streams", height=1.5 * SIZE[1], width=2 * SIZE[0]) as (figure, ax, _):
        for number, row in enumerate(rows):
            colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE) % len(MARKERS)]
            for key, face in (("mean_trainable", "none"), ("final_added", colour)):
                label = row["label"] if key == "final_added" else None
                place = [max(row[key], 1)], [100 * row["last"]["value"]]
                ax.errorbar(*place, yerr=_bars([row["last"]]), fmt=marker, color=colour, markerfacecolor=face, elinewidth=1, label=label)
        ax.set(xlabel="parameters: trained a task (hollow), added in all (filled)", ylabel="last (%)", xscale="log")
        figure.legend(loc="outside right upper")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None})
        return stream.getvalue()


def accuracy_by_type(runs: list[Run]) -> str | None:
    """Base, tuned and blind accuracy by type of question, with 95 % intervals."""
    tables = {run.label: by_type(run) for run in runs if run.vqa}
    if not tables:
        return None
    kinds = list(dict.fromkeys(kind for table in tables.values() for kind in table))
    series = [("before", next(iter(tables.values())), "base_accuracy", GREY, "o")]
    for label, table in tables.items():
        colour, _, marker = run_styles(runs)[label]
        series.append((label, table, "accuracy", colour, marker))
    with _figure("types", height=_rows_height(len(kinds), len(series))) as (figure, ax, done):
        _dots(ax, kinds, series)
        blind = [next((table[kind]["blind"] for table in tables.values() if kind in table), None) for kind in kinds]
        for place, value in enumerate(blind):
            if value is not None:
                ax.plot(
                    [100 * value] * 2,
                    [place - 0.42, place + 0.42],
                    color=INK,
                    linewidth=1.4,
                    linestyle=":",
                    label=None if place else "blind guesser",
                )
        ax.set(xlabel="accuracy (%)", xlim=(-2, 102))
        _legend(figure, ax, runs)
        return done()


def success_by_task(runs: list[Run]) -> str | None:
    """Closed-loop success by task, with Wilson 95 % intervals."""
    tables = {run.label: by_task(run) for run in runs if run.rollout}
    tasks = list(dict.fromkeys(task for table in tables.values() for task in table))
    if not tasks:
        return None
    series = []
    for label, table in tables.items():
        colour, _, marker = run_styles(runs)[label]
        series.append((label, {task: {"success": row} for task, row in table.items()}, "success", colour, marker))
    with _figure("tasks", height=_rows_height(len(tasks), len(series))) as (figure, ax, done):
        _dots(ax, tasks, series)
        ax.set(xlabel="closed-loop success (%)", xlim=(-2, 102))
        _legend(figure, ax, runs)
        return done()


def final_drift(runs: list[Run]) -> str | None:
    """How far each layer of the final VLM has moved over the anchor's samples."""
    from matplotlib.ticker import MaxNLocator

    found = [(run, run.vqa["drift_by_layer"]) for run in runs if run.vqa and run.vqa.get("drift_by_layer")]
    if not found:
        return None
    with _figure("drift") as (figure, ax, done):
        for run, drift in found:
            colour, line, marker = run_styles(runs)[run.label]
            ax.plot(range(len(drift)), _gaps(drift), color=colour, linestyle=line, marker=marker, markersize=4, label=run.label)
        _log_where_positive(ax, [value for _, drift in found for value in drift])
        ax.set(xlabel="layer", ylabel="final drift, W2² / width")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, ax, runs)
        return done()


def curve(runs: list[Run], key: str, label: str, *, log: bool = False) -> str | None:
    """One training curve: `key` of the logged rows over steps."""
    found = [(run, [row for row in run.metrics if row.get(key) is not None]) for run in runs]
    if not any(rows for _, rows in found):
        return None
    with _figure(key) as (figure, ax, done):
        for run, rows in found:
            if rows:
                colour, line, _ = run_styles(runs)[run.label]
                values = [row[key] for row in rows]
                ax.plot([row["step"] for row in rows], _gaps(values), color=colour, linestyle=line, linewidth=1.3, label=run.label)
        if log:
            _log_where_positive(ax, [row[key] for _, rows in found for row in rows])
        ax.set(xlabel="step", ylabel=label)
        _legend(figure, ax, runs)
        return done()


def layer_map(run: Run, key: str, label: str, *, scale: float = 1.0, log: bool = False, diverging: bool = False) -> str | None:
    """One diagnostic by layer and step as a coloured map; a frozen layer stays empty."""
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    series = layer_series(run.metrics)
    if series is None:
        return None
    grid = np.array([[math.nan if value is None else scale * value for value in layer] for layer in series[key]], dtype=float)
    if not np.isfinite(grid).any():
        return None
    positive = grid[np.isfinite(grid) & (grid > 0)]
    norm: Normalize = Normalize(0, positive.max() if positive.size else 1)
    if log and positive.size and positive.min() < positive.max():
        norm, grid = LogNorm(positive.min(), positive.max()), np.where(grid > 0, grid, np.nan)
    steps = series["steps"]
    if diverging:
        bound = float(np.nanmax(np.abs(grid))) or 1.0
        norm = Normalize(-bound, bound)
    edge = (steps[-1] - steps[0]) / max(len(steps) - 1, 1) / 2 or 0.5
    with _figure(f"{run.label}-{key}") as (figure, ax, done):
        extent = (steps[0] - edge, steps[-1] + edge, -0.5, len(grid) - 0.5)
        image = ax.imshow(
            grid, aspect="auto", origin="lower", interpolation="nearest", cmap="RdBu" if diverging else "viridis", norm=norm, extent=extent
        )
        bar = figure.colorbar(image, ax=ax, label=label)
        if isinstance(norm, LogNorm):
            _log_ticks(bar.ax, norm.vmin or 0, norm.vmax or 0)
        bar.outline.set_linewidth(0)  # type: ignore[operator]
        ax.grid(visible=False)
        ax.set(xlabel="step", ylabel="layer")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        return done()


def run_styles(runs: list[Run]) -> dict[str, tuple[str, str, str]]:
    """Colour, line and marker by label: a colour and a marker a method, a line a run of it."""
    methods = list(dict.fromkeys(run.method for run in runs))
    seen: dict[str, Iterator[str]] = {method: itertools.cycle(LINES) for method in methods}
    place = {method: number % len(PALETTE) for number, method in enumerate(methods)}
    return {run.label: (PALETTE[place[run.method]], next(seen[run.method]), MARKERS[place[run.method]]) for run in runs}


def _dots(ax: Axes, groups: list[str], series: list[tuple[str, dict[str, Row], str, str, str]]) -> None:
    """Groups of dots with error bars, a row a group, from the top down."""
    for number, (label, table, key, colour, marker) in enumerate(series):
        places = [place for place, group in enumerate(groups) if (table.get(group) or {}).get(key)]
        figures = [table[groups[place]][key] for place in places]
        offset = 0.7 * ((number + 0.5) / len(series) - 0.5)
        values = [100 * figure["value"] for figure in figures]
        shifted = [place + offset for place in places]
        ax.errorbar(values, shifted, xerr=_bars(figures), fmt=marker, color=colour, markersize=4, elinewidth=1.2, label=label)
    ax.set_yticks(range(len(groups)), groups)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _bars(figures: list[Row]) -> Any:
    """matplotlib's error bars in percent, from `{value, low, high}`; nothing where there is no interval."""
    low = [100 * (row["value"] - (row["value"] if row["low"] is None else row["low"])) for row in figures]
    high = [100 * ((row["value"] if row["high"] is None else row["high"]) - row["value"]) for row in figures]
    return [[max(value, 0) for value in low], [max(value, 0) for value in high]]


def _gaps(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _log_where_positive(ax: Axes, values: list[float | None]) -> None:
    """A logarithmic axis for what is above 0; zeros get a place of their own at its foot."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    positive = [value for value in known if value > 0]
    if not positive or min(known) < 0:
        return
    if min(known) == 0:
        ax.set_yscale("symlog", linthresh=min(positive))
    else:
        ax.set_yscale("log")
    _log_ticks(ax, min(positive), max(positive))


def _log_ticks(ax: Axes, low: float, high: float) -> None:
    """Plain numbers at the decades, and between them where there are few."""
    from matplotlib.ticker import LogLocator

    if high / low < 300 and ax.get_yscale() == "log":
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def _rows_height(groups: int, series: int) -> float:
    return 1.6 + groups * max(0.3, 0.12 * series)


def _legend(figure: Figure, ax: Axes, runs: list[Run]) -> None:
    """A legend below the axes: every run, or where these are many every method (whose runs share a colour and a marker)."""
    names = {run.label: run.method for run in runs} if len(runs) > MANY else {}
    entries: dict[str, Artist] = {}
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        entries.setdefault(names.get(label, label), handle)
    columns = 1 if max(len(label) for label in entries) > 30 else 2
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


@contextmanager
def _figure(name: str, height: float = SIZE[1], width: float = SIZE[0]) -> Iterator[tuple[Figure, Axes, Callable[[], str]]]:
    """A figure in the report's style, its axes, and the function that turns it into SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot(), lambda: _svg(figure, name)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for a page: no header, no addresses, ids that are the figure's own."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 role="img">', text, count=1)
    own = re.sub(r"\W+", "-", name)
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{own}-", text)
    text = re.sub(r"(font: *[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    return text.replace(INK, "currentColor")
