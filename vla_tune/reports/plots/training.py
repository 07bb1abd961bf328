"""What happened in training: curves, and diagnostics by layer."""

from __future__ import annotations

import math

from vla_tune.reports.plots.style import colour_bar, gaps, legend, log_ticks, log_where_positive, named, run_styles, svg_figure
from vla_tune.reports.runs import Run, layer_series


def curve(runs: list[Run], key: str, label: str, *, log: bool = False) -> str | None:
    """One training curve: `key` of the logged rows over steps; of the loss also the held-out one, where it was measured, as points."""
    found = [(run, [row for row in run.metrics if row.get(key) is not None]) for run in runs]
    if not any(rows for _, rows in found):
        return None
    with svg_figure(key) as (figure, ax, done):
        for run, rows in found:
            if rows:
                colour, line, _ = run_styles(runs)[run.label]
                values = [row[key] for row in rows]
                ax.plot([row["step"] for row in rows], gaps(values), color=colour, linestyle=line, linewidth=1.3, label=named(run.label))
                if key == "loss":
                    measured = [row for row in rows if row.get("heldout_loss") is not None]
                    points = gaps([row["heldout_loss"] for row in measured])
                    ax.plot([row["step"] for row in measured], points, color=colour, linestyle=":", marker="o", markersize=3)
        if key == "loss" and any(row.get("heldout_loss") is not None for _, rows in found for row in rows):
            label += " (points: held out)"
        if log:
            log_where_positive(ax, [row[key] for _, rows in found for row in rows])
        ax.set(xlabel="step", ylabel=label)
        legend(figure, ax, runs)
        return done()


def final_drift(runs: list[Run]) -> str | None:
    """How far each layer of the final VLM has moved over the anchor's samples."""
    from matplotlib.ticker import MaxNLocator

    found = [(run, run.vqa["drift_by_layer"]) for run in runs if run.vqa and run.vqa.get("drift_by_layer")]
    if not found:
        return None
    with svg_figure("drift") as (figure, ax, done):
        for run, drift in found:
            colour, line, marker = run_styles(runs)[run.label]
            ax.plot(range(len(drift)), gaps(drift), color=colour, linestyle=line, marker=marker, markersize=4, label=named(run.label))
        log_where_positive(ax, [value for _, drift in found for value in drift])
        ax.set(xlabel="layer", ylabel="final drift, W2² / width")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, ax, runs)
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
    with svg_figure(f"{run.label}-{key}") as (figure, ax, done):
        extent = (steps[0] - edge, steps[-1] + edge, -0.5, len(grid) - 0.5)
        image = ax.imshow(
            grid, aspect="auto", origin="lower", interpolation="nearest", cmap="RdBu" if diverging else "viridis", norm=norm, extent=extent
        )
        bar = colour_bar(figure, image, ax, label)
        if isinstance(norm, LogNorm):
            log_ticks(bar.ax, norm.vmin or 0, norm.vmax or 0)
        ax.grid(visible=False)
        ax.set(xlabel="step", ylabel="layer")
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        return done()
