"""What runs came to: VQA and closed-loop success, over all and by type or task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_tune.errors import shown
from vla_tune.reports.plots.style import GREY, INK, MARKERS, PALETTE, SIZE, error_bars, legend, named, run_styles, svg_figure, svg_file
from vla_tune.reports.runs import Row, Run
from vla_tune.reports.tables import by_task, by_type, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def frontier(runs: list[Run]) -> str | None:
    """What was kept against what was learnt: VQA after fine-tuning and closed-loop success, a point a run."""
    points = [(run, figures) for run in runs if (figures := headline(run))["vqa_after"] and figures["success"]]
    if not points:
        return None
    styles = run_styles(runs)
    with svg_figure("frontier") as (figure, ax, done):
        before = {figures["vqa_before"]["value"] for _, figures in points}
        for place, value in enumerate(sorted(before)):
            ax.axvline(100 * value, color=GREY, linestyle="--", linewidth=1.2, label=None if place else "VQA before")
        for run, figures in points:
            x, y = figures["vqa_after"], figures["success"]
            colour, _, marker = styles[run.label]
            ax.errorbar(
                *([100 * x["value"]], [100 * y["value"]]),
                xerr=error_bars([x]),
                yerr=error_bars([y]),
                fmt=marker,
                color=colour,
                elinewidth=1,
                label=named(run.label),
            )
        ax.set(xlabel="VQA accuracy after (%)", ylabel="closed-loop success (%)", ylim=(-3, 103))
        legend(figure, ax, runs)
        return done()


def variants(rows: list[Row]) -> str | None:
    """A study's frontier: retention and success, a point a variant over all its seeds, as an SVG file of its own."""
    points = [row for row in rows if row["retention"] and row["success"]]
    if not points:
        return None
    with svg_figure("variants", height=1.5 * SIZE[1], width=2 * SIZE[0]) as (figure, ax, _):
        for number, row in enumerate(points):
            x, y = row["retention"], row["success"]
            colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE) % len(MARKERS)]
            place = [100 * x["value"]], [100 * y["value"]]
            ax.errorbar(
                *place, xerr=error_bars([x]), yerr=error_bars([y]), fmt=marker, color=colour, elinewidth=1, label=named(row["label"])
            )
        ax.set(xlabel="VQA retention (%)", ylabel="closed-loop success (%)")
        figure.legend(loc="outside right upper")
        return svg_file(figure)


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
    with svg_figure("types", height=_rows_height(len(kinds), len(series))) as (figure, ax, done):
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
        legend(figure, ax, runs)
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
    with svg_figure("tasks", height=_rows_height(len(tasks), len(series))) as (figure, ax, done):
        _dots(ax, tasks, series)
        ax.set(xlabel="closed-loop success (%)", xlim=(-2, 102))
        legend(figure, ax, runs)
        return done()


def _dots(ax: Axes, groups: list[str], series: list[tuple[str, dict[str, Row], str, str, str]]) -> None:
    """Groups of dots with error bars, a row a group, from the top down."""
    for number, (label, table, key, colour, marker) in enumerate(series):
        places = [place for place, group in enumerate(groups) if (table.get(group) or {}).get(key)]
        figures = [table[groups[place]][key] for place in places]
        offset = 0.7 * ((number + 0.5) / len(series) - 0.5)
        values = [100 * figure["value"] for figure in figures]
        shifted = [place + offset for place in places]
        ax.errorbar(values, shifted, xerr=error_bars(figures), fmt=marker, color=colour, markersize=4, elinewidth=1.2, label=named(label))
    ax.set_yticks(range(len(groups)), map(shown, groups))
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")


def _rows_height(groups: int, series: int) -> float:
    return 1.6 + groups * max(0.3, 0.12 * series)
