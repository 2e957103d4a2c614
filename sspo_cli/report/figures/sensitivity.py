"""Sensitivity of methods to their hyperparameters: a dot for each configuration."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sspo_cli.config import VALIDATION
from sspo_cli.errors import shorten
from sspo_cli.report.figures.style import RANGE, STYLE, WIDTH, colour_of
from sspo_cli.report.frame import rows_of
from sspo_cli.report.groups import RunGroup, grouped

PLACES = 34  # most configurations in a row
LETTERS_OF_A_NAME = 17.0  # per inch, in the font of the tick labels
LONGEST_VALUE = 24  # characters of an option's value
GAP = 0.7  # distance between the panels of two methods, in widths of a configuration
SYMBOLS = {"tau_neg": "τ_neg", "tau_pos": "τ_pos", "eps_low": "ε_low", "eps_high": "ε_high"}
Scores = dict[str, dict[RunGroup, list[float]]]  # a number for each seed, by measured quantity and group


def sensitivity_figure(frame: pd.DataFrame, groups: Sequence[RunGroup], chosen: Sequence[RunGroup]) -> Figure:
    """Draw each configuration of one setting with its seeds, the chosen ones on grey.

    Methods and gates are columns; Pass@1 and the final reward are rows.
    """
    scores = _scores(frame, groups)
    rows = _rows(groups)
    feet = [_foot(variants) for variants in rows]
    heights = [0.35 + 1.05 * len(scores) + foot for foot in feet]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.2))
        shared: dict[str, Axes] = {}
        parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights).flat
        for part, variants in zip(parts, rows, strict=True):
            widths = [len(members) + GAP for members in variants]
            spare = PLACES - sum(widths) if len(rows) > 1 else 0
            spare = spare if spare > GAP else 0  # a narrower column would have no room for its padding
            panels = part.subplots(
                len(scores), len(widths) + (spare > 0), squeeze=False, width_ratios=[*widths, *[spare] * (spare > 0)]
            )
            for ax in panels[:, len(widths) :].flat:
                ax.set_axis_off()
            for line, (name, measured) in zip(panels, scores.items(), strict=True):
                for ax, members in zip(line, variants, strict=False):
                    if name in shared:
                        ax.sharey(shared[name])
                    shared.setdefault(name, ax)
                    _draw(ax, [(group, measured.get(group, [])) for group in members], chosen)
                    ax.tick_params(labelleft=ax is line[0])
                line[0].set_ylabel(name.replace(" ", "\n", 1), fontsize=7)
            for column, members in enumerate(variants):
                panels[0, column].set_title(members[0].variant.replace(" ", "\n"), fontsize=7)
                keys, labels = tick_labels(members)
                for ax in panels[:-1, column]:
                    ax.set_xticks(range(len(members)), [])
                panels[-1, column].set_xticks(range(len(members)), labels, rotation=90, fontsize=6.5)
                panels[-1, column].set_xlabel(keys, fontsize=6.5)
        key: dict[str, Line2D | Patch] = {
            "mean over seeds": Line2D([], [], color="black", marker="o", linestyle="", markersize=4),
            "each seed": Line2D([], [], color="black", marker="_", linestyle="", markersize=6, alpha=0.6),
        }
        if any(len(members) > 1 and set(members) & set(chosen) for variants in rows for members in variants):
            key["chosen by validation"] = Patch(color=RANGE)
        figure.legend(key.values(), key.keys(), loc="outside lower center", ncols=3)
    return figure


def tick_labels(groups: Sequence[RunGroup]) -> tuple[str, list[str]]:
    """Return the options in which configurations differ, and their values: `τ_neg/τ_pos` and `0.3/0.2`."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for group in groups for key in group.differs):
        values = tuple(_short(group.differs.get(key)) for group in groups)
        columns.setdefault(values, []).append(key.rpartition(".")[2])
    names = ["ε" if keys == ["eps_low", "eps_high"] else SYMBOLS.get(keys[0], keys[0]) for keys in columns.values()]
    return "/\n".join(names), ["/".join(values) for values in zip(*columns, strict=True)] or [""] * len(groups)


def _foot(variants: Sequence[Sequence[RunGroup]]) -> float:
    """Estimate the inches that the vertical names of the configurations and the names of their options need."""
    named = [tick_labels(members) for members in variants]
    longest = max(len(label) for _, labels in named for label in labels)
    return 0.35 + longest / LETTERS_OF_A_NAME + 0.1 * max(keys.count("\n") for keys, _ in named)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else shorten(" ".join(str(value).split()), LONGEST_VALUE)


def _scores(frame: pd.DataFrame, groups: Sequence[RunGroup]) -> Scores:
    """Collect the numbers: first validation, by which configurations are chosen, then the benchmarks, then the reward."""
    rows = rows_of(frame, groups)
    rows = rows[rows["selected"]]
    scores: Scores = {}
    for column in sorted(rows["column"].unique(), key=lambda column: not column.startswith(VALIDATION)):
        percents = rows[rows["column"] == column].groupby("group", sort=False)["percent"]
        scores[f"{column} Pass@1 (%)"] = {group: list(values) for group, values in percents}
    rewards = {group: values for group in groups if (values := group.final("reward/mean"))}
    return {**scores, "final reward": rewards} if rewards else scores


def _rows(groups: Sequence[RunGroup]) -> list[list[list[RunGroup]]]:
    """Distribute the groups, by method and gate, over as many rows as they need."""
    rows: list[list[list[RunGroup]]] = []
    free = 0.0
    for members in grouped(groups, lambda group: (group.method, group.gate)).values():
        wanted = len(members) + GAP
        if not rows or wanted > free:
            rows.append([])
            free = PLACES
        rows[-1].append(members)
        free -= wanted
    return rows


def _draw(ax: Axes, tried: Sequence[tuple[RunGroup, list[float]]], chosen: Sequence[RunGroup]) -> None:
    rivals = len(tried) > 1
    for place, (group, values) in enumerate(tried):
        colour, _ = colour_of(group.method, group.gate)
        if rivals and group in chosen:
            ax.axvspan(place - 0.45, place + 0.45, color=RANGE, linewidth=0, zorder=0)
        ax.plot([place] * len(values), values, linestyle="", marker="_", color=colour, alpha=0.6, markersize=6)
        if values:
            ax.plot(place, sum(values) / len(values), marker="o", color=colour, markersize=4)
    ax.set_xlim(-0.5, len(tried) - 0.5)
    ax.grid(visible=False, axis="x")
