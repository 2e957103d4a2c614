"""Training curves: by optimizer step, by wall time, by sampled tokens."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from sspo_cli.report.figures.style import (
    RANGE,
    STYLE,
    colour_of,
    grid,
    inches_wide,
    legend_below,
    line_styles,
    rows_of_panels,
    shades,
    wrapped,
)
from sspo_cli.report.groups import RunGroup, grouped, mean_over_seeds, short_settings

ALPHA = 0.02
LABELS = {"reward/mean": "reward", "policy/entropy": "token entropy (nats)"}
STEP, TOKENS, SMOOTHED = "optimizer step", "tokens sampled", f"smoothed, α = {ALPHA}"
Curve = Callable[[RunGroup], pd.Series]


def grid_figure(groups: Sequence[RunGroup], metric: str) -> Figure:
    """Draw a panel for each combination of model and training data; models are columns if there are several of both."""
    with rc_context(STYLE):
        figure, panels = _panels(groups, 2.3)
        handles: dict[str, Any] = {}
        drawn: set[Any] = set()
        for group, (colour, dashes) in zip(groups, line_styles(groups), strict=True):
            handles.setdefault(group.label, Line2D([], [], color=colour, linestyle=dashes))
            key = (group.setting, points_of(mean_of(group, metric)))
            if key not in drawn:
                draw(panels[group.setting], group, metric, color=colour, linestyle=dashes)
            drawn.add(key)
        for ax in panels.values():
            ax.set(xlabel=STEP, ylabel=LABELS[metric])
        legend_below(figure, handles)
    return figure


def by_method_figure(groups: Sequence[RunGroup], metric: str) -> Figure:
    """Draw a panel for each method and gate of a setting: its configurations in shades, and the range of all others in grey."""
    variants = grouped(groups, lambda group: (group.method, group.gate))
    with rc_context(STYLE):
        figure, axes = grid(len(variants), 1.75, foot=0.0, sharex=True, sharey=True)
        tallest = 0.0
        for ax, ((method, gate), members) in zip(axes, variants.items(), strict=True):
            if rivals := [group for group in groups if (group.method, group.gate) != (method, gate)]:
                means = pd.concat([mean_over_seeds(group.counted, metric) for group in rivals], axis=1)
                ax.fill_between(means.index, means.min(axis=1), means.max(axis=1), color=RANGE, linewidth=0)
            labels = [wrapped(group.details, 1.3 * inches_wide(ax)) for group in members]
            colours = shades(colour_of(method, gate)[0], len(members))
            for group, shade, label in zip(members, colours, labels, strict=True):
                draw(ax, group, metric, color=shade, linestyle="-", label=label)
            ax.set_title(wrapped(members[0].variant, inches_wide(ax)))
            if len(members) > 1:
                ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=6.5, handlelength=1.5)
                tallest = max(tallest, sum(0.11 * (1 + label.count("\n")) + 0.05 for label in labels))
        figure.set_figheight(figure.get_figheight() + rows_of_panels(axes) * tallest)
        figure.supxlabel(STEP, fontsize=8)
        figure.supylabel(LABELS[metric], fontsize=8)
    return figure


def smoothed_figure(groups: Sequence[RunGroup]) -> Figure:
    """Draw reward and entropy of each setting, side by side, smoothed."""

    def mean(metric: str) -> Curve:
        return lambda group: smoothed(mean_of(group, metric))

    recorded = [metric for metric in LABELS if any(has_curve(group, metric) for group in groups)]
    return _pairs(groups, [(STEP, f"{LABELS[metric]}\n{SMOOTHED}", mean(metric)) for metric in recorded])


def cost_figure(groups: Sequence[RunGroup]) -> Figure:
    """Draw the smoothed reward against its cost: wall time of the optimizer steps, and sampled tokens."""
    longest = max(by_seconds(group).index.max() for group in groups)
    unit, length = next((u for u in (("hours", 3600), ("minutes", 60)) if longest > 2 * u[1]), ("seconds", 1))
    reward = f"reward\n{SMOOTHED}"
    return _pairs(
        groups,
        [
            (f"{unit} of optimizer steps", reward, lambda group: by_seconds(group, length)),
            (TOKENS, reward, by_tokens),
        ],
    )


def mean_of(group: RunGroup, metric: str) -> pd.Series:
    """Average a metric over the counted runs of a group, by step."""
    return mean_over_seeds(group.counted, metric)


def by_seconds(group: RunGroup, unit: float = 1.0) -> pd.Series:
    """Return the smoothed mean reward by the mean wall time of the optimizer steps, in multiples of `unit` seconds."""
    return reward_by(group, mean_of(group, "time/step").cumsum() / unit)


def by_tokens(group: RunGroup) -> pd.Series:
    """Return the smoothed mean reward by the mean number of sampled tokens."""
    return reward_by(group, mean_of(group, "tokens"))


def has_cost(group: RunGroup) -> bool:
    """Report whether all counted runs have reward, time and tokens, of at least two steps and two rollouts."""
    needed = {"reward/mean", "time/step", "tokens"}
    return (
        all(needed <= set(run.metrics) for run in group.counted)
        and min(len(by_seconds(group)), len(by_tokens(group))) > 1
    )


def smoothed(values: pd.Series) -> pd.Series:
    """Compute the bias-corrected exponential moving average: y_t = Σ_s (1 − α)^(t−s) x_s / Σ_s (1 − α)^(t−s) over s ≤ t."""
    return values.ewm(alpha=ALPHA, adjust=True).mean()


def reward_by(group: RunGroup, cost: pd.Series) -> pd.Series:
    """Return the smoothed mean reward by mean cost, both over the seeds. Of steps with equal cost, the last one is used."""
    reward = smoothed(mean_over_seeds(group.counted, "reward/mean"))
    cost = cost[cost.index.isin(reward.index)].drop_duplicates(keep="last")
    return reward.loc[cost.index].set_axis(cost.to_numpy())


def _pairs(groups: Sequence[RunGroup], curves: Sequence[tuple[str, str, Curve]]) -> Figure:
    """Draw the panels of each setting, given as (axis labels, function that returns a group's curve). Draws equal curves once."""
    settings = list(dict.fromkeys(group.setting for group in groups))
    with rc_context(STYLE):
        shared = "col" if len({group.start for group in groups}) == 1 else False
        width = len(curves)
        figure, axes = grid(width * len(settings), 2.5, columns=width, foot=0.3, sharey=shared)
        handles: dict[str, Any] = {}
        drawn: set[Any] = set()
        names = short_settings(groups)
        for group, (colour, dashes) in zip(groups, line_styles(groups), strict=True):
            handles.setdefault(group.label, Line2D([], [], color=colour, linestyle=dashes))
            row = width * settings.index(group.setting)
            for ax, (_, _, curve) in zip(axes[row : row + width], curves, strict=True):
                key = (ax, points_of(values := curve(group)))
                if key not in drawn:
                    ax.plot(values, color=colour, linestyle=dashes, **_dot(values))
                drawn.add(key)
        for number, ax in enumerate(axes):
            xlabel, ylabel, _ = curves[number % width]
            ax.set(xlabel=xlabel, ylabel=ylabel, title=wrapped(names[settings[number // width]], inches_wide(ax)))
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            if xlabel == TOKENS:
                ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        legend_below(figure, handles)
    return figure


def _panels(groups: Sequence[RunGroup], height: float) -> tuple[Figure, dict[str, Axes]]:
    """Make a panel for each setting, with training data as rows and models as columns if there are several of both."""
    settings = {(_data(group), group.model): group.setting for group in groups}
    data, models = (list(dict.fromkeys(names)) for names in zip(*settings, strict=True))
    if min(len(data), len(models)) > 1:
        figure, axes = grid(len(data) * len(models), height, columns=len(models), foot=0.3)
        places = dict(zip(product(data, models), axes, strict=True))
    else:
        comparable = len({group.start for group in groups}) == 1
        figure, axes = grid(len(settings), height, foot=0.3, sharey=comparable)
        places = dict(zip(settings, axes, strict=True))
    for place, ax in places.items():
        if place not in settings:
            ax.set_axis_off()
    panels = {setting: places[place] for place, setting in settings.items()}
    names = short_settings(groups)
    for setting, ax in panels.items():
        ax.set_title(wrapped(names[setting], inches_wide(ax)))
    return figure, panels


def _data(group: RunGroup) -> str:
    return group.setting.removeprefix(f"{group.model}, ")


def draw(ax: Axes, group: RunGroup, metric: str, **line: Any) -> Line2D:
    """Draw each seed as a thin line, and the mean of the counted runs as a thick line. Returns the thick line. No smoothing.

    A seed that is equal to the mean or to another seed is not drawn again.
    """
    mean = mean_over_seeds(group.counted, metric)
    seeds = [run.metrics[metric].dropna() for run in group.runs if metric in run.metrics]
    thin = {points_of(values): values for values in seeds}
    for values in (values for points, values in thin.items() if points != points_of(mean)):
        ax.plot(values, color=line["color"], linewidth=0.5, alpha=0.4, zorder=1.5, **_dot(values))
    if mean.empty:
        line.pop("label", None)
    (thick,) = ax.plot(mean, **line, **_dot(mean))
    return thick


def has_curve(group: RunGroup, metric: str) -> bool:
    """Report whether a run of the group has the metric at two steps; a single point is no curve."""
    return any(metric in run.metrics and run.metrics[metric].count() > 1 for run in group.runs)


def points_of(values: pd.Series) -> tuple[Any, ...]:
    """Return the points of a curve as a tuple. Two curves are identical if their tuples are equal."""
    return tuple(values.items())


def equal_curves(groups: Sequence[RunGroup], *curves: Curve) -> str:
    """Return a sentence that lists groups with equal curves in a setting, or an empty string if there are none."""
    alike = [
        members
        for curve in curves
        for members in grouped(groups, lambda group: (group.setting, points_of(curve(group)))).values()  # noqa: B023
        if len(members) > 1 and len(curve(members[0]))
    ]
    names = dict.fromkeys(", ".join(group.label for group in members) for members in alike)
    return f"Equal curves are drawn once, in the colour of the first: {'; '.join(names)}." if names else ""


def _dot(values: pd.Series) -> dict[str, Any]:
    """Return a marker for a curve with a single point, because its line would be invisible."""
    return {"marker": "o", "markersize": 3} if len(values) == 1 else {}
