"""The report's figures, as SVG that takes its ink from the page and so is legible on light and on dark."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vla_tune.reports.runs import Row, Run, layer_series
from vla_tune.reports.tables import by_task, by_type, headline

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

BASE = "base"
"""What a router calls the frozen layer itself, beside experts `{task}-{number}`."""
PLAIN = ("model", "layers", "encoder", "decoder", "blocks", "resblocks")
"""Parts of a layer's name that tell nothing."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2")
"""A transformer layer's, in the order that data runs through them."""
INK = "#010203"
"""Stands for `currentColor`, which matplotlib does not know."""
PALETTE = ("#2f83c5", "#d98a1e", "#12a078", "#c4609a", "#8a7fd0", "#c9512b")
"""Mid-tones after Okabe and Ito: told apart by colour-blind readers, legible on white and on black."""
GREY = "#8a8f98"
MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.")
MIXED = [(line, marker) for marker in MARKERS for line in LINES]
MANY = 4
"""With more runs than this, legends name methods."""
SIZE = (4.3, 3.3)
WIDE = 12.0
"""The width of a figure that takes the whole page, in inches."""
LABELLED = 12
"""A larger matrix has no numbers in its cells."""
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
        return _svg_file(figure)


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
        return _svg_file(figure)


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
        bar = _bar(figure, image, ax, label)
        if isinstance(norm, LogNorm):
            _log_ticks(bar.ax, norm.vmin or 0, norm.vmax or 0)
        ax.grid(visible=False)
        ax.set(xlabel="step", ylabel="layer")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        return done()


def matrix_map(run: Run) -> str | None:
    """A stream's score on each task (columns) after each task (rows) as a coloured map; blank where it was not measured."""
    import numpy as np

    stream = run.stream or {}
    if not stream.get("matrix"):
        return None
    names: list[str] = stream["tasks"]
    rows = [("(before)", stream["start"])] if stream.get("start") else []
    rows += list(zip(names, stream["matrix"], strict=False))
    grid = 100 * np.array([_gaps(values) for _, values in rows], dtype=float)
    top = float(np.nanmax(grid)) or 1.0
    width = max(SIZE[0], 2.0 + 0.38 * grid.shape[1])
    with _figure(f"{run.label}-matrix", height=1.1 + 0.3 * max(len(rows), 5), width=width) as (figure, ax, done):
        image = ax.imshow(grid, aspect="auto", interpolation="none", cmap="viridis", vmin=0, vmax=top)
        _bar(figure, image, ax, "score (%)")
        ax.set_xticks(range(grid.shape[1]), names[: grid.shape[1]], rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(rows)), [name for name, _ in rows])
        ax.grid(visible=False)
        ax.set(ylabel="after")
        if max(grid.shape) <= LABELLED:
            for (row, column), value in np.ndenumerate(grid):
                if math.isfinite(value):
                    ink = "#000000" if value > 0.6 * top else "#ffffff"
                    ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=9)
        return done()


def router_map(run: Run) -> str | None:
    """How much of each layer's inputs goes to which expert after a task was learnt: a panel a task, a row a layer, a column an expert.

    Experts stand in the order that they were made in, by the task that they were made for; blank is what a task does not use. Where
    routers gave way (`method.igsp.routing`), it is as phase 1 ended.
    """
    import numpy as np

    tasks = [(number, one) for number, one in enumerate(run.tasks) if one.get("shares")]
    if not tasks:
        return None
    layers = layer_order([layer for _, one in tasks for layer in one["shares"]])
    used = {expert for _, one in tasks for shares in one["shares"].values() for expert in shares} - {BASE}
    experts = [BASE, *sorted(used, key=lambda expert: [int(part) for part in expert.split("-")])]
    grids = [[[one["shares"].get(layer, {}).get(expert, math.nan) for expert in experts] for layer in layers] for _, one in tasks]
    fitting = min(len(tasks), max(1, int((WIDE - 2.4) / max(0.07 * len(experts), 1.15))))
    down = math.ceil(len(tasks) / fitting)
    across = math.ceil(len(tasks) / down)
    height = down * (0.125 * max(len(layers), 12) + 1.1)
    with _figure(f"{run.label}-router", height=height, width=WIDE) as (figure, first, done):
        first.remove()
        axes = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
        top = float(np.nanmax(grids))
        for ax, (number, one), grid in zip(axes, tasks, grids, strict=False):
            image = ax.imshow(np.array(grid, dtype=float), aspect="auto", interpolation="none", cmap="viridis", vmin=0, vmax=top)
            ax.set_title(f"{number + 1} {one['name']}", fontsize=10)
            ax.grid(visible=False)
            ax.set_yticks(range(len(layers)), short_names(layers), fontsize=7.5)
            ax.tick_params(length=0, labelbottom=True)
            _made_for(ax, experts, run.tasks)
        for ax in axes[len(tasks) :]:
            ax.remove()
        _bar(figure, image, figure.axes, "mean routing probability")
        return done()


def agreement(run: Run) -> str | None:
    """How far routers agree with themselves from one check of phase 1 to the next, a line a task; a ring is where the phase ended."""
    tasks = [(number, one) for number, one in enumerate(run.tasks) if one.get("agreement") or one.get("ended")]
    if not tasks:
        return None
    with _figure(f"{run.label}-agreement", height=SIZE[1] + 0.2 * math.ceil(len(tasks) / 3)) as (figure, ax, done):
        wanted = run.config.get("method", {}).get("igsp", {}).get("agreement")
        for number, one in tasks:
            colour, (line, marker) = PALETTE[number % len(PALETTE)], MIXED[number // len(PALETTE) % len(MIXED)]
            known = [(step, share) for step, share in one["agreement"] if share is not None]
            steps, shares = [step for step, _ in known], [100 * share for _, share in known]
            ax.plot(steps, shares, color=colour, linestyle=line, marker=marker, markersize=3, label=one["name"])
            if one.get("ended") in steps:
                end = shares[steps.index(one["ended"])]
                ax.plot([one["ended"]], [end], linestyle="", marker="o", markersize=9, markerfacecolor="none", color=colour)
            elif one.get("ended"):
                ax.axvline(one["ended"], color=colour, linestyle=":", linewidth=1)
        if wanted:
            ax.axhline(100 * wanted, color=GREY, linestyle="--", linewidth=1.2, label="settled")
        ax.set(xlabel="step of the task", ylabel="router agreement (%)")
        figure.legend(loc="outside lower center", ncols=3)
        return done()


def layer_order(layers: list[str]) -> list[str]:
    """Layer names, each once: by tower, as these first come, then by number, then as data runs through a layer."""
    parts = {layer: _parts(layer) for layer in layers}
    towers = list(dict.fromkeys(tower for tower, _, _ in parts.values()))
    kinds = list(dict.fromkeys((*LINEARS, *(kind.rpartition(".")[2] for _, _, kind in parts.values()))))

    def place(layer: str) -> tuple[int, int, int]:
        tower, number, kind = parts[layer]
        return towers.index(tower), number, kinds.index(kind.rpartition(".")[2])

    return sorted(parts, key=place)


def short_names(layers: list[str]) -> list[str]:
    """Layer names that fit beside a row, `vision 3 fc1`; whole ones where short ones would be the same."""
    short = []
    for tower, number, kind in map(_parts, layers):
        words = [word for word in tower.split(".") if word not in PLAIN]
        named = words[-1].removesuffix("_model").removeprefix("lm_") if words and number >= 0 else ""
        short.append(" ".join([named, str(number) if number >= 0 else "", kind.rpartition(".")[2].removesuffix("_proj")]).strip())
    return [layer if short.count(name) > 1 else " ".join(name.split()) for layer, name in zip(layers, short, strict=True)]


def _parts(layer: str) -> tuple[str, int, str]:
    """The tower that a layer stands in, its number there (-1 without one), and what follows."""
    found = re.fullmatch(r"(.*?)\.?\b(\d+)\.(.*)", layer)
    if found:
        return found[1], int(found[2]), found[3]
    tower, _, kind = layer.rpartition(".")
    return tower, -1, kind


def _made_for(ax: Axes, experts: list[str], tasks: list[Row]) -> None:
    """Name columns by the task that their experts were made for, and part these groups."""
    groups = [expert if expert == BASE else expert.partition("-")[0] for expert in experts]
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    names = [BASE if group == BASE else tasks[int(group)]["name"] for group in places]
    ax.set_xticks([sum(own) / len(own) for own in places.values()], names, rotation=90, fontsize=7.5)
    for own in places.values():
        if own[0]:
            ax.axvline(own[0] - 0.5, color=GREY, linewidth=0.5)


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


def _bar(figure: Figure, image: AxesImage, ax: Axes | list[Axes], label: str) -> Colorbar:
    """The scale of a coloured map, beside its top where that is tall."""
    height = figure.get_figheight()
    bar = figure.colorbar(image, ax=ax, label=label, aspect=max(20, 6 * min(height, 5)), shrink=min(1, 5 / height), anchor=(0, 1))
    bar.outline.set_linewidth(0)  # type: ignore[operator]
    return bar


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


def _svg_file(figure: Figure) -> str:
    """The figure as an SVG file of its own."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None})
    return stream.getvalue()


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
