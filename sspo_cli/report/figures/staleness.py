"""Effect of staleness: the same methods at several μ."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from sspo_cli.config import VALIDATION
from sspo_cli.report.figures.curves import LABELS, STEP, draw
from sspo_cli.report.figures.style import STYLE, colour_of, grid, legend_below, shades
from sspo_cli.report.frame import rows_of
from sspo_cli.report.groups import REGIME, RunGroup, effects_of, grouped
from sspo_cli.report.records import RunRecord

MU = "μ, optimizer steps of a rollout batch"


def series_of(groups: Sequence[RunGroup]) -> list[list[RunGroup]]:
    """Return series of groups whose settings differ only in μ."""
    series: list[list[RunGroup]] = []
    for members in grouped(groups, lambda group: group.start).values():
        settings = {group.setting: mu_of(group) for group in members}
        apart = len(set(settings.values())) == len(settings)
        series += [members] if apart else grouped(members, _regime_but_mu).values()
    return [members for members in series if len({mu_of(group) for group in members}) > 1]


def mu_of(group: RunGroup) -> int:
    return group.options.learning.mu


def staleness_figure(frame: pd.DataFrame, groups: Sequence[RunGroup]) -> Figure:
    """Draw panels for Pass@1 on each benchmark, the final reward, the final entropy and the attenuated share, by μ.

    A panel has a line for each method and gate, with bars from the lowest to the highest seed.
    """
    panels = _panels(frame, groups)
    variants = grouped(groups, lambda group: group.variant)
    mus = sorted({mu_of(group) for group in groups})
    with rc_context(STYLE):
        figure, axes = grid(len(panels), 2.3, columns=2, foot=0.3)
        handles: dict[str, Any] = {}
        for ax, (label, values_of) in zip(axes, panels.items(), strict=True):
            for place, (variant, members) in enumerate(variants.items()):
                offset = 1.025 ** (place - (len(variants) - 1) / 2)  # so that the bars do not overlap
                colour, dashes = colour_of(members[0].method, members[0].gate)
                points = sorted((mu_of(group), values) for group in members if (values := values_of(group)))
                if points:
                    handle = _draw(ax, points, offset, color=colour, linestyle=dashes)
                    handles.setdefault(variant, handle)
            ax.set_xscale("log", base=2)
            ax.set_xticks(mus, [str(mu) for mu in mus])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set(xlabel=MU, ylabel=label)
            if label.startswith("stalest"):
                ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend_below(figure, handles)
    return figure


def by_mu_figure(groups: Sequence[RunGroup], metric: str) -> Figure:
    """Draw a panel for each method and gate with a line for each μ (darker for larger μ), on a common scale."""
    variants = grouped(groups, lambda group: group.variant)
    mus = sorted({mu_of(group) for group in groups})
    with rc_context(STYLE):
        figure, axes = grid(len(variants), 1.6, foot=0.3, sharex=True, sharey=True)
        for ax, (variant, members) in zip(axes, variants.items(), strict=True):
            colours = dict(zip(mus, shades(colour_of(members[0].method, members[0].gate)[0], len(mus)), strict=True))
            for group in sorted(members, key=mu_of):
                draw(ax, group, metric, color=colours[mu_of(group)], linewidth=1.2)
            ax.set_title(variant)
        for ax in axes[-3:]:
            ax.set_xlabel(STEP)
        figure.supylabel(LABELS[metric], fontsize=8)
        key = [axes[0].plot([], color=shade)[0] for shade in shades("#000000", len(mus))]
        legend_below(figure, dict(zip([f"μ = {mu}" for mu in mus], key, strict=True)))
    return figure


def attenuated(run: RunRecord) -> float | None:
    """Average over the steps the share of tokens with w < 0.5 in the last minibatch of each rollout batch."""
    metrics = run.metrics
    if not {"minibatch", "weights/attenuated"} <= set(metrics):
        return None
    shares = metrics["weights/attenuated"][metrics["minibatch"] == run.options.learning.mu].dropna()
    return float(shares.mean()) if len(shares) else None


def _panels(frame: pd.DataFrame, groups: Sequence[RunGroup]) -> dict[str, Callable[[RunGroup], list[float]]]:
    """Return, for each panel's label, the function that computes the panel's values for the seeds of a group."""
    rows = rows_of(frame, groups)
    rows = rows[rows["selected"] & (rows["benchmark"] != VALIDATION)]

    def percents(column: str) -> Callable[[RunGroup], list[float]]:
        measured = rows[rows["column"] == column]
        return lambda group: list(measured.loc[measured["group"] == group, "percent"])

    panels = {f"{column}, Pass@1 (%)": percents(column) for column in rows["column"].unique()}
    panels |= {
        "final reward": lambda group: group.final("reward/mean"),
        "final token entropy (nats)": lambda group: group.final("policy/entropy"),
        "stalest tokens with w < 0.5": lambda group: [
            share for run in group.counted if (share := attenuated(run)) is not None
        ],
    }
    return {label: values_of for label, values_of in panels.items() if any(map(values_of, groups))}


def _draw(ax: Axes, points: Sequence[tuple[int, list[float]]], offset: float, **line: Any) -> Any:
    means = [fmean(values) for _, values in points]
    below = [mean - min(values) for mean, (_, values) in zip(means, points, strict=True)]
    above = [max(values) - mean for mean, (_, values) in zip(means, points, strict=True)]
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.2, "elinewidth": 0.7}
    return ax.errorbar([mu * offset for mu, _ in points], means, [below, above], **style, **line)


def _regime_but_mu(group: RunGroup) -> tuple[Any, ...]:
    effects = effects_of(group.runs[0])
    return tuple(effects.get(key) for key in REGIME if key != "learning.mu")
