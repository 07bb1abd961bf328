"""Streams of tasks: scores after each task, routing, and ways to learn a stream side by side."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from vla_tune.errors import shown
from vla_tune.reports.plots.style import (
    GREY,
    LINES,
    MARKERS,
    PALETTE,
    SIZE,
    colour_bar,
    error_bars,
    gaps,
    named,
    svg_figure,
    svg_file,
)
from vla_tune.reports.runs import Row, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


BASE = "base"
"""What a router calls the frozen layer itself, beside experts `{task}-{number}`."""
PLAIN = ("model", "layers", "encoder", "decoder", "blocks", "resblocks")
"""Parts of a layer's name that tell nothing."""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2")
"""A transformer layer's, in the order that data runs through them."""
MIXED = [(line, marker) for marker in MARKERS for line in LINES]
WIDE = 12.0
"""The width of a figure that takes the whole page, in inches."""
LABELLED = 12
"""A larger matrix has no numbers in its cells."""


def streams(rows: list[Row]) -> str:
    """What is known at a stream's end against the parameters trained a task (hollow) and added in all, as an SVG file of its own."""
    with svg_figure("streams", height=1.5 * SIZE[1], width=2 * SIZE[0]) as (figure, ax, _):
        for number, row in enumerate(rows):
            colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number // len(PALETTE) % len(MARKERS)]
            for key, face in (("mean_trainable", "none"), ("final_added", colour)):
                label = named(row["label"]) if key == "final_added" else None
                place = [max(row[key], 1)], [100 * row["last"]["value"]]
                bars = error_bars([row["last"]])
                ax.errorbar(*place, yerr=bars, fmt=marker, color=colour, markerfacecolor=face, elinewidth=1, label=label)
        ax.set(xlabel="parameters: trained a task (hollow), added in all (filled)", ylabel="last (%)", xscale="log")
        figure.legend(loc="outside right upper")
        return svg_file(figure)


def matrix_map(run: Run) -> str | None:
    """A stream's score on each task (columns) after each task (rows) as a coloured map; blank where it was not measured."""
    import numpy as np

    stream = run.stream or {}
    if not stream.get("matrix"):
        return None
    names: list[str] = stream["tasks"]
    rows = [("(before)", stream["start"])] if stream.get("start") else []
    rows += list(zip(names, stream["matrix"], strict=False))
    grid = 100 * np.array([gaps(values) for _, values in rows], dtype=float)
    top = float(np.nanmax(grid)) or 1.0
    width = max(SIZE[0], 2.0 + 0.38 * grid.shape[1])
    with svg_figure(f"{run.label}-matrix", height=1.1 + 0.3 * max(len(rows), 5), width=width) as (figure, ax, done):
        image = ax.imshow(grid, aspect="auto", interpolation="none", cmap="viridis", vmin=0, vmax=top)
        colour_bar(figure, image, ax, "score (%)")
        ax.set_xticks(range(grid.shape[1]), map(shown, names[: grid.shape[1]]), rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(rows)), [shown(name) for name, _ in rows])
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
    with svg_figure(f"{run.label}-router", height=height, width=WIDE) as (figure, first, done):
        first.remove()
        axes = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
        top = float(np.nanmax(grids))
        for ax, (number, one), grid in zip(axes, tasks, grids, strict=False):
            image = ax.imshow(np.array(grid, dtype=float), aspect="auto", interpolation="none", cmap="viridis", vmin=0, vmax=top)
            ax.set_title(f"{number + 1} {shown(one['name'])}", fontsize=10)
            ax.grid(visible=False)
            ax.set_yticks(range(len(layers)), map(shown, short_names(layers)), fontsize=7.5)
            ax.tick_params(length=0, labelbottom=True)
            _made_for(ax, experts, run.tasks)
        for ax in axes[len(tasks) :]:
            ax.remove()
        colour_bar(figure, image, figure.axes, "mean routing probability")
        return done()


def agreement(run: Run) -> str | None:
    """How far routers agree with themselves from one check of phase 1 to the next, a line a task; a ring is where the phase ended."""
    tasks = [(number, one) for number, one in enumerate(run.tasks) if one.get("agreement") or one.get("ended")]
    if not tasks:
        return None
    with svg_figure(f"{run.label}-agreement", height=SIZE[1] + 0.2 * math.ceil(len(tasks) / 3)) as (figure, ax, done):
        wanted = run.config.get("method", {}).get("igsp", {}).get("agreement")
        for number, one in tasks:
            colour, (line, marker) = PALETTE[number % len(PALETTE)], MIXED[number // len(PALETTE) % len(MIXED)]
            known = [(step, share) for step, share in one["agreement"] if share is not None]
            steps, shares = [step for step, _ in known], [100 * share for _, share in known]
            ax.plot(steps, shares, color=colour, linestyle=line, marker=marker, markersize=3, label=named(one["name"]))
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
    names = [BASE if group == BASE else shown(tasks[int(group)]["name"]) for group in places]
    ax.set_xticks([sum(own) / len(own) for own in places.values()], names, rotation=90, fontsize=7.5)
    for own in places.values():
        if own[0]:
            ax.axvline(own[0] - 0.5, color=GREY, linewidth=0.5)
