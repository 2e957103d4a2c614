"""Overview figure of one configuration."""

from dataclasses import replace

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sspo_cli.report.figures.curves import STEP, draw
from sspo_cli.report.figures.scores import PERCENT, draw_intervals, heading
from sspo_cli.report.figures.style import STYLE, WIDTH, inches_wide, wrapped
from sspo_cli.report.frame import over_seeds, rows_of, split
from sspo_cli.report.groups import RunGroup
from sspo_cli.report.records import RunRecord

COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def training_figure(frame: pd.DataFrame, group: RunGroup) -> Figure:
    """Draw reward and its parts, entropy, attenuated tokens by the sign of the advantage, and Pass@1 with its intervals."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5.0))
        (reward, entropy), (attenuated, scores) = figure.subplots(2, 2)
        for metric, colour in zip(("mean", "answer", "format"), COLOURS, strict=False):
            draw(reward, group, f"reward/{metric}", color=colour, label=metric)
        draw(entropy, group, "policy/entropy", color="#009E73")
        stale = replace(group, runs=[replace(run, metrics=_stalest(run)) for run in group.runs])
        for name, label, colour in zip(
            ("", "positive_", "negative_"), ("all", "Â > 0", "Â < 0"), COLOURS, strict=False
        ):
            draw(attenuated, stale, f"weights/{name}attenuated", color=colour, label=label)
        attenuated.yaxis.set_major_formatter(PercentFormatter(1.0))
        attenuated.set_ylim(bottom=0)
        shares = over_seeds(rows_of(frame, [group]), by=["step"])
        measured = shares["column"].nunique()
        figure.set_figheight(4.8 + 0.13 * measured)
        for (_, column), colour in zip(split(shares, "column"), COLOURS, strict=False):
            draw_intervals(scores, column, color=colour, label=wrapped(heading(column), inches_wide(scores)))
        if shares.empty:
            scores.text(0.5, 0.5, "no evaluation of a finished run", transform=scores.transAxes, ha="center")
            scores.set(xticks=[], yticks=[])
        labels = {
            reward: "reward (minibatch mean)",
            entropy: "token entropy (nats)",
            attenuated: "stalest tokens with w < 0.5",
            scores: PERCENT,
        }
        for ax, label in labels.items():
            ax.set(xlabel=STEP, ylabel=label)
            handles, names = ax.get_legend_handles_labels()
            if handles:  # above the panel, so that no line crosses it
                ax.legend(
                    handles,
                    names,
                    loc="lower right",
                    bbox_to_anchor=(1.0, 1.0),
                    ncols=3 if ax is not scores else 1,
                    borderaxespad=0,
                )
        seeds = ", ".join(str(run.seed) for run in group.counted)
        title = f"{group.label}, {group.setting}, seed{'s' * (len(group.counted) > 1)} {seeds}"
        figure.suptitle(wrapped(title, WIDTH), fontsize=9)
    return figure


def _stalest(run: RunRecord) -> pd.DataFrame:
    """Select the steps of the last minibatch of each rollout batch, or all if the metrics do not name minibatches.

    In the first minibatch no token is attenuated.
    """
    metrics = run.metrics
    return metrics[metrics["minibatch"] == run.options.learning.mu] if "minibatch" in metrics else metrics
