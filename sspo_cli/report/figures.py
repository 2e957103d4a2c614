"""Figures, each drawn from groups of runs. No smoothing anywhere: thin lines are seeds, the thick one is their mean."""

import itertools
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sspo_cli.objectives import SSPO_GATES, build_objective
from sspo_cli.report.runs import Group
from sspo_cli.report.statistics import evaluations, mean_over_seeds, over_seeds

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "legend.fontsize": 8,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "sspo",  # the same runs give the same file
}

# Okabe and Ito's and Tol's colours, told apart with any colour vision; the baselines are dashed besides.
LINES: dict[tuple[str, str], tuple[str, Any]] = {
    ("grpo", "clip"): ("#000000", (0, (5, 1.5))),
    ("gspo", "clip"): ("#56B4E9", (0, (5, 1.5))),
    ("gmpo", "clip"): ("#882255", (0, (5, 1.5))),
    ("sapo", "sigmoid"): ("#999933", (0, (5, 1.5))),
    ("sspo", "expsig"): ("#E69F00", "-"),
    ("sspo", "expatan"): ("#CC79A7", "-"),
    ("sspo", "gumbel"): ("#009E73", "-"),
    ("sspo", "atanlog"): ("#D55E00", "-"),
    ("sspo", "siglog"): ("#0072B2", "-"),
}
DOTS = (0, (1, 1.2))
MORE_DASHES = ((0, (4, 1, 1, 1)), (0, (2, 1)), (0, (6, 1, 1, 1, 1, 1)))
PARTS = {"reward/mean": "reward", "reward/answer": "answer part", "reward/format": "format part"}


def save(figure: Figure, out: Path, name: str) -> list[Path]:
    """As SVG, PDF and PNG."""
    paths = [out / f"{name}.{suffix}" for suffix in ("svg", "pdf", "png")]
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    with rc_context(STYLE):
        for path in paths:
            figure.savefig(path, metadata=undated[path.suffix[1:]])
    return paths


def reward_figure(groups: Sequence[Group]) -> Figure:
    """A row for each setting: the reward, its answer part and its format part by step."""
    return _curves(groups, list(PARTS), {name: f"{label} (minibatch mean)" for name, label in PARTS.items()})


def entropy_figure(groups: Sequence[Group]) -> Figure:
    return _curves(groups, ["policy/entropy"], {"policy/entropy": "token entropy (nats)"})


def gates_figure() -> Figure:
    """The five gates against clip, each at its defaults: f(ρ) of a sequence whose tokens all have ρ, and w(ρ)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.2))
        axes = figure.subplots(2, 2, sharex=True, sharey="col")
        log_ratio = torch.linspace(-1.6, 1.1, 541, dtype=torch.float64)[:, None]
        ratio, mask = log_ratio.exp().flatten(), torch.ones_like(log_ratio)
        for row, sign in zip(axes, (1.0, -1.0), strict=True):
            advantages = torch.full((len(ratio),), sign, dtype=torch.float64)
            for gate in ("clip", *SSPO_GATES):
                objective = build_objective(method="geometric", gate=gate)
                colour, dashes = LINES[("grpo" if gate == "clip" else "sspo", gate)]
                f = objective.weights(log_ratio, advantages, mask)
                w = objective.token_weights(log_ratio, advantages, mask).flatten()
                for ax, values in zip(row, (f, w), strict=True):
                    ax.plot(ratio, values, color=colour, linestyle=dashes, label=gate)
            when = "Â > 0" if sign > 0 else "Â < 0"
            row[0].set(title=f"gate, {when}", ylabel="f(ρ)")
            row[1].set(title=f"token weight, {when}", ylabel="w(ρ) = ρ f′(ρ) / f(ρ)")
        for ax in axes.flat:
            ax.axvline(1.0, color="#bbbbbb", linewidth=0.8, zorder=0)
        for ax in axes[1]:
            ax.set_xlabel("probability ratio ρ")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def training_figure(group: Group) -> Figure:
    """One configuration at a glance: reward split, entropy, attenuated share, held-out Pass@1."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 5.4))
        (reward, entropy), (attenuated, held_out) = figure.subplots(2, 2)
        for metric, colour in zip(PARTS, ("#000000", "#0072B2", "#E69F00"), strict=True):
            _draw(reward, group, metric, color=colour, label=metric.removeprefix("reward/"))
        reward.set_ylabel("minibatch mean")
        _draw(entropy, group, "policy/entropy", color="#009E73")
        entropy.set_ylabel("nats a token")
        for metric, colour, label in (
            ("weights/positive_attenuated", "#0072B2", "Â > 0"),
            ("weights/negative_attenuated", "#E69F00", "Â < 0"),
            ("weights/attenuated", "#000000", "all"),
        ):
            _draw(attenuated, group, metric, color=colour, label=label)
        attenuated.set_ylabel("share of tokens")
        attenuated.yaxis.set_major_formatter(PercentFormatter(1.0))
        _draw_pass_at_1(held_out, group)
        titles = ("Reward", "Policy entropy", "Attenuated tokens", "Pass@1")
        for ax, title in zip((reward, entropy, attenuated, held_out), titles, strict=True):
            ax.set_xlabel("optimizer step")
            ax.set_title(title, loc="left")
            if ax.get_legend_handles_labels()[0]:
                # above the panel, where no line can run through it
                ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, borderaxespad=0.2)
        seeds = ", ".join(str(run.options.seed) for run in group.counted)
        figure.suptitle(f"{group.label}, {group.setting}, seed {seeds}")
    return figure


def lines_of(groups: Sequence[Group]) -> list[tuple[str, Any]]:
    """Colours and dashes: a method and gate have the same ones in every report, and further configurations other dashes."""
    colours = [colour for colour, _ in LINES.values()]
    seen: Counter[tuple[str, str]] = Counter()
    lines = []
    for group in groups:
        name = (group.method, group.gate)
        # A free cell or a gate of the user's own takes any colour, but always the same one, and dots.
        colour, dashes = LINES.get(name, (colours[zlib.crc32(repr(name).encode()) % len(colours)], DOTS))
        lines.append((colour, MORE_DASHES[seen[name] % len(MORE_DASHES)] if seen[name] else dashes))
        seen[name] += 1
    return lines


def _curves(groups: Sequence[Group], metrics: list[str], labels: dict[str, str]) -> Figure:
    settings = list(dict.fromkeys(group.setting for group in groups))
    with rc_context(STYLE):
        width = max(6.4, 0.6 + 3.6 * len(metrics))
        longest = max(len(group.label) for group in groups)
        columns = max(1, int(width * 11 / (longest + 7)))  # about 11 letters an inch, 7 for the line and gaps
        figure = Figure(figsize=(width, 0.5 + 2.7 * len(settings) + 0.16 * math.ceil(len(groups) / columns)))
        axes = figure.subplots(len(settings), len(metrics), squeeze=False, sharex="row")
        handles: dict[str, Any] = {}
        for row, setting in zip(axes, settings, strict=True):
            comparable = [group for group in groups if group.setting == setting]
            for ax, metric in zip(row, metrics, strict=True):
                for group, (colour, dashes) in zip(comparable, lines_of(comparable), strict=True):
                    handles.setdefault(group.label, _draw(ax, group, metric, color=colour, linestyle=dashes))
                ax.set(xlabel="optimizer step", ylabel=labels[metric], title=setting)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)
    return figure


def _draw(ax: Axes, group: Group, metric: str, **line: Any) -> Any:
    """Thin: every seed, unfinished ones too; thick: the mean of those that count. Returns the thick line."""
    label = line.pop("label", None)
    mean = mean_over_seeds(group.counted, metric)
    if len(group.runs) > 1:
        for run in group.runs:
            if metric in run.metrics:
                ax.plot(run.metrics[metric], **line, linewidth=0.6, alpha=0.45)
    (thick,) = ax.plot(mean, **line, label=label)
    return thick


def _draw_pass_at_1(ax: Axes, group: Group) -> None:
    shares = over_seeds(evaluations([group]))
    colours = itertools.cycle(("#D55E00", "#0072B2", "#009E73", "#CC79A7"))
    for (column, same), colour in zip(shares.groupby("column", sort=False), colours, strict=False):
        share, low, high = same["pass_at_1"], same["low"], same["high"]
        label = f"{column} {same['split'].iloc[0]}, n = {same['n'].iloc[0]}"
        ax.errorbar(same["step"], share, [share - low, high - share], fmt="o-", capsize=4, color=colour, label=label)
        for place in (0, -1):
            ax.annotate(
                f"{share.iloc[place]:.1%}",
                (same["step"].iloc[place], high.iloc[place]),
                (0, 3),
                textcoords="offset points",
                ha="center",
            )
    ax.set_ylabel("share solved, 95 % interval")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    if shares.empty:
        ax.text(0.5, 0.5, "no evaluation of a finished run", transform=ax.transAxes, ha="center")
    ax.margins(x=0.12, y=0.15)
