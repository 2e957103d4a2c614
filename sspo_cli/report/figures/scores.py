"""Pass@1 with its intervals: by step, and of the selected checkpoints."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sspo_cli.report.figures.style import STYLE, WIDTH, colour_of, grid, inches_wide, legend_below, lines_of, wrapped
from sspo_cli.report.measurements import TRAINED, evaluations, lines, over_seeds, pass_at_1
from sspo_cli.report.runs import Collection, Group, Select, short_settings

PERCENT = "Pass@1 (%)"
LABEL_WIDTH = 3.1  # inches
GREY = "#666666"


def scores_by_step_figure(groups: Sequence[Group]) -> Figure | None:
    """A panel for each setting and measurement that some run has at several steps; None where there is none."""
    shares = over_seeds(evaluations(groups))
    shares["setting"] = shares["group"].map(lambda number: groups[number].setting)
    panels = [
        (key, same) for key, same in shares.groupby(["setting", "column"], sort=False) if same["step"].nunique() > 1
    ]
    if not panels:
        return None
    several = shares["setting"].nunique() > 1
    names = short_settings(groups)
    with rc_context(STYLE):
        figure, axes = grid(len(panels), 2.5, columns=2, foot=0.3)
        handles: dict[str, Any] = {}
        styles = lines_of(groups)
        for ax, ((setting, _), same) in zip(axes, panels, strict=True):
            numbers = list(same["group"].unique())
            gap = (same["step"].max() - same["step"].min()) / max(1, same["step"].nunique() - 1)
            for place, number in enumerate(numbers):
                own, (colour, dashes) = same[same["group"] == number], styles[number]
                beside = 0.05 * gap * (place - (len(numbers) - 1) / 2)  # so that intervals do not hide one another
                handle = draw_intervals(ax, own, beside, color=colour, linestyle=dashes)
                handles.setdefault(groups[number].label, handle)
            ax.set_title(
                wrapped(f"{heading(same)}\n{names[str(setting)]}" if several else heading(same), inches_wide(ax))
            )
            ax.set_xlabel("optimizer step")
            ax.set_ylabel(PERCENT)
        legend_below(figure, handles)
    return figure


def draw_intervals(ax: Axes, shares: pd.DataFrame, beside: float = 0.0, **line: Any) -> Any:
    """Means over seeds by step, `beside` it, with their intervals; returns the handle for a legend."""
    share, low, high = (100 * shares[name] for name in ("pass_at_1", "low", "high"))
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.2, "elinewidth": 0.7, "capsize": 1.5}
    return ax.errorbar(shares["step"] + beside, share, [share - low, high - share], **style, **line)


def final_figure(collection: Collection, select: Select) -> Figure | None:
    """A block for each setting, a panel for each benchmark in it, a dot with its interval for each configuration; None
    without a number."""
    shown = lines(collection, collection.groups, select)
    if not shown:
        return None
    scores = pass_at_1(shown)
    scores["setting"] = [shown[place].setting for place in scores["line"]]
    scores["label"] = [shown[place].label for place in scores["line"]]
    settings = list(scores["setting"].unique())
    blocks = [scores[scores["setting"] == setting] for setting in settings]
    rows = [
        (block, list(block["column"].unique()[i : i + 3]))
        for block in blocks
        for i in range(0, block["column"].nunique(), 3)
    ]
    labels = [[wrapped(label, LABEL_WIDTH) for label in block["label"].unique()] for block, _ in rows]
    heights = [0.75 + 0.16 * sum(1 + label.count("\n") for label in own) for own in labels]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights)))
        panels = figure.subplots(
            len(rows), max(len(columns) for _, columns in rows), squeeze=False, height_ratios=heights
        )
        for axes, (block, columns), own in zip(panels, rows, labels, strict=True):
            ends = list(accumulate(1 + label.count("\n") for label in own))
            places = {label: end - (1 + label.count("\n")) / 2 for label, end in zip(own, ends, strict=True)}
            for ax in axes[len(columns) :]:
                ax.set_axis_off()
            for ax, column in zip(axes, columns, strict=False):
                same = block[block["column"] == column]
                for row in same.to_dict("records"):
                    line = shown[row["line"]]
                    colour = colour_of(line.method, line.gate)[0] if line.kind == TRAINED else GREY
                    _dot(ax, places[wrapped(line.label, LABEL_WIDTH)], row, colour)
                    if line.kind != TRAINED:
                        ax.axvline(100 * row["pass_at_1"], color=GREY, linewidth=0.6, linestyle=":", zorder=1)
                ax.set_yticks(list(places.values()), own if ax is axes[0] else [], fontsize=7)
                ax.set_ylim(ends[-1], 0)
                ax.grid(visible=False, axis="y")
                ax.tick_params(axis="y", length=0)
                ax.spines["left"].set_visible(False)
                ax.margins(x=0.08)
                ax.xaxis.set_major_locator(MaxNLocator(8 if len(columns) == 1 else 4, steps=[1, 2, 5, 10]))
                ax.set_xlabel(PERCENT)
                ax.set_title(wrapped(heading(same), inches_wide(ax)))
            if len(settings) > 1:
                axes[0].set_title(f"{block['setting'].iloc[0]}\n{axes[0].get_title()}", loc="left")
                axes[0].set_title("")
    return figure


def heading(same: pd.DataFrame) -> str:
    """Of rows of one measurement."""
    row = same.iloc[0]
    return f"{row['column']}, n = {row['n']}" + (f" × {row['samples']}" if row["samples"] > 1 else "")


def _dot(ax: Axes, place: float, row: dict[Any, Any], colour: str) -> None:
    low, high, share, *seeds = (100 * row[name] for name in ("low", "high", "pass_at_1", "lowest_seed", "highest_seed"))
    ax.plot([low, high], [place, place], color=colour, linewidth=1.2, solid_capstyle="butt")
    ax.plot(seeds, [place, place], linestyle="", marker="|", color=colour, markersize=5, markeredgewidth=0.8)
    ax.plot(share, place, "o", color=colour, markersize=4)
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate(f"{share:.1f}", (1.0, place), (2, 0), va="center", fontsize=7, **beside)
