"""How every plot looks: ink, colours, axes, legends, and SVG that takes its ink from the page."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vla_tune.errors import shown
from vla_tune.reports.runs import Row, Run

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


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


@contextmanager
def svg_figure(name: str, height: float = SIZE[1], width: float = SIZE[0]) -> Iterator[tuple[Figure, Axes, Callable[[], str]]]:
    """A figure in the report's style, its axes, and the function that turns it into SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": shown(name)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot(), lambda: _svg(figure, name)


def svg_file(figure: Figure) -> str:
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
    text = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 role="img">', text, count=1)
    own = re.sub(r"\W+", "-", name)
    return re.sub(r"<[^>]*>", lambda tag: _of_page(tag[0], own), text)  # what stands between tags is text, whatever it looks like


def _of_page(tag: str, own: str) -> str:
    """A tag of matplotlib's with the page's ink and font, and with ids that no other figure has."""
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag)
    tag = re.sub(r'\bid="', f'id="{own}-', tag)
    tag = re.sub(r'(url\(|xlink:href=")#', rf"\1#{own}-", tag)
    tag = re.sub(r"(font: *[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", tag)
    return tag.replace(INK, "currentColor")


def named(label: str) -> str:
    """A label as matplotlib shows it, which leaves out those that begin with `_`; what is no character of a font goes by its number."""
    return f"\u200b{shown(label)}" if label.startswith("_") else shown(label)


def run_styles(runs: list[Run]) -> dict[str, tuple[str, str, str]]:
    """Colour, line and marker by label: a colour and a marker a method, a line a run of it."""
    methods = list(dict.fromkeys(run.method for run in runs))
    seen: dict[str, Iterator[str]] = {method: itertools.cycle(LINES) for method in methods}
    place = {method: number % len(PALETTE) for number, method in enumerate(methods)}
    return {run.label: (PALETTE[place[run.method]], next(seen[run.method]), MARKERS[place[run.method]]) for run in runs}


def legend(figure: Figure, ax: Axes, runs: list[Run]) -> None:
    """A legend below the axes: every run, or where these are many every method (whose runs share a colour and a marker)."""
    names = {named(run.label): named(run.method) for run in runs} if len(runs) > MANY else {}
    entries: dict[str, Artist] = {}
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        entries.setdefault(names.get(label, label), handle)
    columns = 1 if max(len(label) for label in entries) > 30 else 2
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


def colour_bar(figure: Figure, image: AxesImage, ax: Axes | list[Axes], label: str) -> Colorbar:
    """The scale of a coloured map, beside its top where that is tall."""
    height = figure.get_figheight()
    bar = figure.colorbar(image, ax=ax, label=label, aspect=max(20, 6 * min(height, 5)), shrink=min(1, 5 / height), anchor=(0, 1))
    bar.outline.set_linewidth(0)  # type: ignore[operator]
    return bar


def error_bars(figures: list[Row]) -> Any:
    """matplotlib's error bars in percent, from `{value, low, high}`; nothing where there is no interval."""
    low = [100 * (row["value"] - (row["value"] if row["low"] is None else row["low"])) for row in figures]
    high = [100 * ((row["value"] if row["high"] is None else row["high"]) - row["value"]) for row in figures]
    return [[max(value, 0) for value in low], [max(value, 0) for value in high]]


def gaps(values: list[float | None]) -> list[float]:
    """nan, which matplotlib leaves out, where there is no value."""
    return [math.nan if value is None else value for value in values]


def log_where_positive(ax: Axes, values: list[float | None]) -> None:
    """A logarithmic axis for what is above 0; zeros get a place of their own at its foot."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    positive = [value for value in known if value > 0]
    if not positive or min(known) < 0:
        return
    if min(known) == 0:
        ax.set_yscale("symlog", linthresh=min(positive))
    else:
        ax.set_yscale("log")
    log_ticks(ax, min(positive), max(positive))


def log_ticks(ax: Axes, low: float, high: float) -> None:
    """Plain numbers at the decades, and between them where there are few."""
    from matplotlib.ticker import LogLocator

    if high / low < 300 and ax.get_yscale() == "log":
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")
