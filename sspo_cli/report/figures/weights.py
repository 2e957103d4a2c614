"""The measured distribution of token weights in training."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from sspo_cli.report.figures.style import STYLE, colour_of, grid, inches_wide, legend_below, shades, wrapped
from sspo_cli.report.groups import RunGroup

Phase = tuple[int, int]
Shares = dict[Phase, np.ndarray]  # share of tokens in each bin
MOST_PHASES = 4


def weights_figure(groups: Sequence[RunGroup]) -> Figure | None:
    """Draw two panels for each configuration, Â > 0 and Â < 0, with a line for each phase of staleness.

    Returns None if no run has a histogram.
    """
    measured = [(group, signs) for group in groups if (signs := shares_by_phase(group)) and (signs[1] or signs[2])]
    if not measured:
        return None
    phases = _evenly_spaced(sorted({phase for _, (_, *signs) in measured for sign in signs for phase in sign}))
    several = len({group.setting for group, _ in measured}) > 1
    with rc_context(STYLE):
        pairs = 1 if len(measured) <= 3 else 2
        figure, axes = grid(2 * len(measured), 1.45, columns=2 * pairs, foot=0.4, sharex=True, sharey=True)
        for number, (group, (width, positive, negative)) in enumerate(measured):
            label = f"{group.label}, {group.setting}" if several else group.label
            axes[2 * number].set_title(wrapped(label, 2 * inches_wide(axes[2 * number]) + 0.5), loc="left", fontsize=7)
            for ax, shares, sign in zip(axes[2 * number :], (positive, negative), (">", "<"), strict=False):
                colours = shades(colour_of(group.method, group.gate)[0], len(phases))
                for phase, shade in zip(phases, colours, strict=True):
                    if phase in shares:
                        edges = width * np.arange(len(shares[phase]) + 1)
                        ax.stairs(shares[phase], edges, baseline=None, color=shade, linewidth=1.2)
                ax.text(0.1, 0.97, f"Â {sign} 0", transform=ax.transAxes, va="top", fontsize=7)
                ax.set(xlim=(0, 1.2), xticks=[0, 0.5, 1])
                ax.label_outer()
                if not shares:
                    ax.set_axis_off()
                    ax.texts[-1].set_text(f"no tokens with Â {sign} 0")
        axes[0].set_yscale("log")
        axes[0].set_ylim(1e-5, 1.5)
        axes[0].yaxis.set_major_locator(LogLocator(numticks=6))
        axes[0].yaxis.set_minor_locator(NullLocator())
        for ax in axes[:: 2 * pairs]:
            ax.set_ylabel("share of tokens")
        for ax in axes[-2 * pairs :]:
            ax.set_xlabel("weight w(ρ)")
            ax.xaxis.set_tick_params(labelbottom=True)
        epochs = len({epoch for epoch, _ in phases}) > 1
        names = [f"epoch {epoch}, minibatch {m}" if epochs else f"minibatch {m}" for epoch, m in phases]
        key = [Line2D([], [], color=shade) for shade in shades("#000000", len(phases))]
        legend_below(figure, dict(zip(names, key, strict=True)))
    return figure


def shares_by_phase(group: RunGroup) -> tuple[float, Shares, Shares] | None:
    """Return the bins' width, and the share of tokens in each bin by (epoch, minibatch) for Â > 0 and for Â < 0.

    The shares are over all steps of the counted runs. Returns None if no run has a histogram. Raises UserError for a damaged
    file.
    """
    rows = [row for run in group.counted for row in run.weights()]
    if not rows:
        return None
    signs: list[Shares] = []
    for sign in ("positive", "negative"):
        counts: dict[Phase, np.ndarray] = defaultdict(lambda: np.zeros(len(rows[0]["positive"])))
        for row in rows:
            counts[row["epoch"], row["minibatch"]] += row[sign]
        signs.append({phase: tokens / tokens.sum() for phase, tokens in counts.items() if tokens.any()})
    return rows[0]["width"], signs[0], signs[1]


def _evenly_spaced(phases: list[Phase]) -> list[Phase]:
    """Return at most `MOST_PHASES` phases: the first, the last, and evenly spaced phases between them."""
    if len(phases) <= MOST_PHASES:
        return phases
    return [phases[round(place)] for place in np.linspace(0, len(phases) - 1, MOST_PHASES)]
