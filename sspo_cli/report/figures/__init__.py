"""The figures of a report, each with what its caption has to say."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from sspo_cli.report.figures.curves import ALPHA, by_method_figure, cost_figure, grid_figure, smoothed_figure
from sspo_cli.report.figures.gates import CAPTION, gates_figure
from sspo_cli.report.figures.scores import final_figure, scores_by_step_figure
from sspo_cli.report.figures.style import save
from sspo_cli.report.figures.training import training_figure
from sspo_cli.report.figures.weights import weights_figure
from sspo_cli.report.measurements import best_configurations, by, mean_over_seeds
from sspo_cli.report.runs import Collection, Group, Select

__all__ = ["Drawing", "best_of_each", "figures", "save"]

CROWDED = 5  # configurations: with more in a panel, each method has a panel of its own too; up to it, each has a figure
CURVES = {"reward": "reward/mean", "entropy": "policy/entropy"}
NAMES = {"reward": "Reward", "entropy": "Token entropy"}
INTERVALS = "Intervals are 95 % (Wilson), over problems, not over seeds."
SELECTED = {"last": "after the last step", "best": "at the best step by validation"}


class Drawing(NamedTuple):
    """A figure, its title in a few words, its caption in plain sentences, and the name of its files."""

    name: str
    title: str
    caption: str
    figure: Figure


def figures(collection: Collection, select: Select = "last") -> Iterator[Drawing]:
    """Every figure that the runs have something for; each is drawn when its turn comes. Of more than five configurations, none
    has a figure of its own.

    Raises UserError where a file of a run is damaged.
    """
    groups = [group for group in collection.groups if any(len(run.metrics) for run in group.runs)]
    if groups:
        yield from _training_curves(groups, *best_of_each(groups, select))
    if final := final_figure(collection, select):
        caption = f"Pass@1 {SELECTED[select]}; ticks: lowest and highest seed; grey: before RL."
        yield Drawing("pass-at-1", "Pass@1", f"{caption} {INTERVALS}", final)
    best, _ = best_of_each(groups, select)
    if by_step := scores_by_step_figure(best):
        caption = f"Pass@1 of finished runs during training, means over {_seeds(best)}, side by side around each step."
        yield Drawing("pass-at-1-by-step", "Pass@1 by step", f"{caption} {INTERVALS}", by_step)
    if measured := weights_figure(best):
        caption = (
            f"Measured distribution of the token weights w(ρ) over all steps and {_seeds(best)}, by the sign of Â, in bins of "
            "0.05, the last one open; the darker, the staler the minibatch. In the first minibatch of a rollout, ρ = 1."
        )
        yield Drawing("weights", "Token weights in training", caption, measured)
    yield Drawing("gates", "The gates against clip", CAPTION, gates_figure())
    for name, group in _training_names(groups if len(groups) <= CROWDED else []):
        caption = f"{_curves_caption([group])} Attenuated: w < 0.5, in the last minibatch of each rollout. {INTERVALS}"
        yield Drawing(name, f"{group.label}, {group.setting}", caption, training_figure(group))


def best_of_each(groups: Sequence[Group], select: Select) -> tuple[list[Group], str]:
    """Of each method and gate in each setting the best configuration, and a sentence on how it was found.

    That of table 1, by validation; where there is no common validation, by the mean reward of the last tenth of the steps.
    """
    validated, _ = best_configurations(groups, select)
    variants = by(validated, lambda group: (group.setting, group.method, group.gate))
    best = [max(same, key=_final_reward) for same in variants.values()]
    if len(best) == len(groups):
        return best, ""
    how = "validation Pass@1, as in table 1"
    if len(best) < len(validated):
        how = "validation Pass@1 or, without a common validation, by the mean reward of the last tenth of the steps"
    return best, f"Of several configurations of a method, the best by {how}."


def _final_reward(group: Group) -> float:
    reward = mean_over_seeds(group.counted, "reward/mean")
    return float(reward.iloc[-max(1, len(reward) // 10) :].mean()) if len(reward) else float("-inf")


def _training_curves(groups: Sequence[Group], best: Sequence[Group], how: str) -> Iterator[Drawing]:
    crowded = max(map(len, by(groups, lambda group: group.setting).values())) > CROWDED
    for name, metric in CURVES.items():
        drawn = best if crowded else groups
        caption = f"{_curves_caption(drawn)} {how if crowded else ''}".rstrip()
        yield Drawing(name, f"{NAMES[name]} by step", caption, grid_figure(drawn, metric))
    smoothing = f"Exponentially smoothed with α = {ALPHA}, bias-corrected. Means over {_seeds(best)}."
    yield Drawing("best", "Reward and entropy, smoothed", f"{smoothing} {how}".rstrip(), smoothed_figure(best))
    if crowded:
        for name, metric in CURVES.items():
            caption = f"{_curves_caption(groups)} A panel for each method; grey: the range of the means of the others."
            yield Drawing(
                f"{name}-by-method", f"{NAMES[name]}, method by method", caption, by_method_figure(groups, metric)
            )
    timed = [group for group in best if all({"time/step", "tokens"} <= set(run.metrics) for run in group.counted)]
    if timed:
        caption = f"{smoothing} Wall time is without evaluations and checkpoints. {how}".rstrip()
        yield Drawing("cost", "Reward by wall time and by sampled tokens", caption, cost_figure(timed))


def _curves_caption(groups: Sequence[Group]) -> str:
    if max(len(group.runs) for group in groups) == 1:
        return "One seed; no smoothing."
    return (
        f"Thick: mean over {_seeds(groups)}, up to the last step that all of them have; thin: each seed; no smoothing."
    )


def _seeds(groups: Sequence[Group]) -> str:
    numbers = sorted({len(group.counted) for group in groups})
    if len(numbers) == 1:
        return f"{numbers[0]} seed{'s' * (numbers[0] > 1)}"
    return f"{numbers[0]} to {numbers[-1]} seeds"


def _training_names(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """`training` where there is one configuration, else a name for each."""
    if len(groups) == 1:
        return [("training", groups[0])]
    names = [re.sub(r"[^a-z0-9.]+", "-", f"training-{g.setting}-{g.label}".lower()).strip("-") for g in groups]
    return list(zip(names, groups, strict=True))
