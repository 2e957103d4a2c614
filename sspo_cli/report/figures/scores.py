"""Pass@1 with its intervals, by step and for the selected checkpoints."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sspo_cli.report.figures.style import STYLE, WIDTH, colour_of, grid, inches_wide, legend_below, line_styles, wrapped
from sspo_cli.report.frame import TRAINED, over_seeds, rows_of, split, table_rows
from sspo_cli.report.groups import RunGroup, short_settings

PERCENT = "Pass@1 (%)"
LABEL_WIDTH = 3.1  # inches
GREY = "#666666"


def scores_by_step_figure(frame: pd.DataFrame, groups: Sequence[RunGroup]) -> Figure | None:
    """Draw a panel for each setting and measurement of which a run has scores at several steps. Returns None if there is none."""
    shares = over_seeds(rows_of(frame, groups), by=["group", "setting", "step"])
    panels = [
        (setting, column) for (setting, _), column in split(shares, "setting", "column") if column["step"].nunique() > 1
    ]
    if not panels:
        return None
    several = shares["setting"].nunique() > 1
    names, styles = short_settings(groups), dict(zip(groups, line_styles(groups), strict=True))
    with rc_context(STYLE):
        figure, axes = grid(len(panels), 2.5, columns=2, foot=0.3)
        handles: dict[str, Any] = {}
        for ax, (setting, column) in zip(axes, panels, strict=True):
            members = column["group"].unique()
            gap = (column["step"].max() - column["step"].min()) / max(1, column["step"].nunique() - 1)
            for place, group in enumerate(members):
                shift = 0.05 * gap * (place - (len(members) - 1) / 2)  # keeps intervals from overlapping
                colour, dashes = styles[group]
                of_group = column[column["group"] == group]
                handles.setdefault(group.label, draw_intervals(ax, of_group, shift, color=colour, linestyle=dashes))
            title = f"{heading(column)}\n{names[setting]}" if several else heading(column)
            ax.set(title=wrapped(title, inches_wide(ax)), xlabel="optimizer step", ylabel=PERCENT)
        legend_below(figure, handles)
    return figure


def draw_intervals(ax: Axes, shares: pd.DataFrame, shift: float = 0.0, **line: Any) -> Any:
    """Draw the mean over seeds at each step with its interval.

    shift  distance by which the points are moved along the step axis

    Returns the legend handle.
    """
    share, low, high = (100 * shares[name] for name in ("pass_at_1", "low", "high"))
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.2, "elinewidth": 0.7, "capsize": 1.5}
    return ax.errorbar(shares["step"] + shift, share, [share - low, high - share], **style, **line)


def final_figure(frame: pd.DataFrame, groups: Sequence[RunGroup]) -> Figure | None:
    """Draw a block for each setting, with a panel for each benchmark and a dot with interval for each configuration.

    Returns None if no setting has scores of two lines.
    """
    lines = table_rows(frame, groups)
    if lines.empty:
        return None
    scores = over_seeds(lines, by=["line", "setting"])
    # A single dot shows nothing.
    blocks = [block for _, block in split(scores, "setting") if block["line"].nunique() > 1]
    if not blocks:
        return None
    rows = [
        (block, list(block["column"].unique()[start : start + 3]))
        for block in blocks
        for start in range(0, block["column"].nunique(), 3)
    ]
    labels = [list(dict.fromkeys(wrapped(line.label, LABEL_WIDTH) for line in block["line"])) for block, _ in rows]
    heights = [0.75 + 0.16 * sum(1 + label.count("\n") for label in names) for names in labels]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights)))
        widest = max(len(columns) for _, columns in rows)
        panels = figure.subplots(len(rows), widest, squeeze=False, height_ratios=heights)
        for axes, (block, columns), names in zip(panels, rows, labels, strict=True):
            for ax in axes[len(columns) :]:
                ax.set_axis_off()
            for ax, column in zip(axes, columns, strict=False):
                _draw_dots(ax, block[block["column"] == column], names)
                ax.tick_params(axis="y", length=0, labelleft=ax is axes[0])
                ax.xaxis.set_major_locator(MaxNLocator(8 if len(columns) == 1 else 4, steps=[1, 2, 5, 10]))
            if len(blocks) > 1:
                axes[0].set_title(f"{block['setting'].iloc[0]}\n{axes[0].get_title()}", loc="left")
                axes[0].set_title("")
    return figure


def heading(column: pd.DataFrame) -> str:
    """Describe the measurement of a column's rows."""
    row = column.iloc[0]
    return f"{row['column']}, n = {row['n']}" + (f" × {row['samples']}" if row["samples"] > 1 else "")


def _draw_dots(ax: Axes, column: pd.DataFrame, names: Sequence[str]) -> None:
    """Draw a panel of `final_figure`; `names` are the lines of the whole block, from top to bottom."""
    ends = list(accumulate(1 + label.count("\n") for label in names))
    places = {label: end - (1 + label.count("\n")) / 2 for label, end in zip(names, ends, strict=True)}
    for row in column.to_dict("records"):
        line = row["line"]
        colour = colour_of(line.method, line.gate)[0] if line.kind == TRAINED else GREY
        _dot(ax, places[wrapped(line.label, LABEL_WIDTH)], row, colour)
        if line.kind != TRAINED:
            ax.axvline(100 * row["pass_at_1"], color=GREY, linewidth=0.6, linestyle=":", zorder=1)
    ax.set_yticks(list(places.values()), names, fontsize=7)
    ax.set_ylim(ends[-1], 0)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.08)
    ax.set_xlabel(PERCENT)
    ax.set_title(wrapped(heading(column), inches_wide(ax)))


def _dot(ax: Axes, place: float, row: dict[Any, Any], colour: str) -> None:
    low, high, share, *seeds = (100 * row[name] for name in ("low", "high", "pass_at_1", "lowest_seed", "highest_seed"))
    ax.plot([low, high], [place, place], color=colour, linewidth=1.2, solid_capstyle="butt")
    ax.plot(seeds, [place, place], linestyle="", marker="|", color=colour, markersize=5, markeredgewidth=0.8)
    ax.plot(share, place, "o", color=colour, markersize=4)
    right: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate(f"{share:.1f}", (1.0, place), (2, 0), va="center", fontsize=7, **right)
