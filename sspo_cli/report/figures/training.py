"""Overview figure of one configuration."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sspo_cli.report.figures.curves import STEP, draw, has_curve, points_of
from sspo_cli.report.figures.scores import PERCENT, draw_intervals, heading
from sspo_cli.report.figures.style import STYLE, WIDTH, inches_wide, wrapped
from sspo_cli.report.frame import over_seeds, rows_of, split
from sspo_cli.report.groups import RunGroup, grouped, mean_over_seeds
from sspo_cli.report.records import RunRecord

COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


REWARD, ENTROPY, ATTENUATED = "reward (minibatch mean)", "token entropy (nats)", "stalest tokens with w < 0.5"
CURVES = {
    REWARD: {"mean": "reward/mean", "answer": "reward/answer", "format": "reward/format"},
    ENTROPY: {"": "policy/entropy"},
    ATTENUATED: {
        "all": "weights/attenuated",
        "Â > 0": "weights/positive_attenuated",
        "Â < 0": "weights/negative_attenuated",
    },
}


def training_figure(frame: pd.DataFrame, group: RunGroup) -> Figure:
    """Draw reward and its parts, entropy, attenuated tokens by the sign of the advantage, and Pass@1 with its intervals.

    Only the panels that are in `training_panels` are drawn.
    """
    panels = training_panels(frame, group)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.4 * rows))
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, (label, draw_panel) in zip(axes, panels.items(), strict=False):
            draw_panel(ax)
            ax.set(xlabel=STEP, ylabel=label)
            handles, names = ax.get_legend_handles_labels()
            if handles:  # the legend is above the panel, so that no line crosses it
                ax.legend(
                    handles,
                    names,
                    loc="lower right",
                    bbox_to_anchor=(1.0, 1.0),
                    ncols=1 if label == PERCENT else 3,
                    borderaxespad=0,
                )
                figure.set_figheight(2.4 * rows + 0.13 * len(handles) * (label == PERCENT))
        seeds = ", ".join(str(run.seed) for run in group.counted)
        title = f"{group.label}, {group.setting}, seed{'s' * (len(group.counted) > 1)} {seeds}"
        figure.suptitle(wrapped(title, WIDTH), fontsize=9)
    return figure


def training_panels(frame: pd.DataFrame, group: RunGroup) -> dict[str, Callable[[Axes], None]]:
    """Return, by label, functions that draw the panels. A panel needs evaluations, or a curve with at least two steps."""
    stalest = replace(group, runs=[replace(run, metrics=_stalest(run)) for run in group.runs])
    panels: dict[str, Callable[[Axes], None]] = {}
    for label, metrics in CURVES.items():
        source = stalest if label == ATTENUATED else group
        if any(has_curve(source, metric) for metric in metrics.values()):
            panels[label] = partial(_draw_curves, group=source, label=label)
    shares = over_seeds(rows_of(frame, [group]), by=["step"])
    if len(shares):
        panels[PERCENT] = partial(_draw_scores, shares=shares)
    return panels


def left_out_panels(frame: pd.DataFrame, group: RunGroup) -> str:
    """Describe in a sentence the panels that are left out; empty if all are drawn."""
    panels = training_panels(frame, group)
    absent = [label for label in CURVES if label not in panels]
    reasons = [f"not recorded at two steps: {', '.join(absent)}"] if absent else []
    reasons += [] if PERCENT in panels else ["no evaluation of a finished run"]
    return f"Panels left out: {'; '.join(reasons)}." if reasons else ""


def _draw_curves(ax: Axes, group: RunGroup, label: str) -> None:
    """Draw the curves of a panel. Equal curves are drawn once and labelled with all of their names."""
    colours = dict(zip(CURVES[label], COLOURS, strict=False)) if len(CURVES[label]) > 1 else {"": "#009E73"}
    recorded = {
        name: metric
        for name, metric in CURVES[label].items()
        if any(metric in run.metrics and run.metrics[metric].count() for run in group.runs)
    }
    for names in grouped(
        recorded, lambda name: points_of(mean_over_seeds(group.counted, recorded[name])) or name
    ).values():
        line: dict[str, Any] = {"color": colours[names[0]], "label": ", ".join(names)}
        draw(ax, group, recorded[names[0]], **line)
    if label == ATTENUATED:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_ylim(bottom=0)


def _draw_scores(ax: Axes, shares: pd.DataFrame) -> None:
    for (_, column), colour in zip(split(shares, "column"), COLOURS, strict=False):
        draw_intervals(ax, column, color=colour, label=wrapped(heading(column), inches_wide(ax)))


def _stalest(run: RunRecord) -> pd.DataFrame:
    """Return the steps of the last minibatch of each rollout batch, or all steps if the metrics lack the minibatch number.

    In the first minibatch no token is attenuated.
    """
    metrics = run.metrics
    return metrics[metrics["minibatch"] == run.options.learning.mu] if "minibatch" in metrics else metrics
