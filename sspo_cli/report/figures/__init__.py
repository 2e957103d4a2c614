"""The figures of a report, each with what its caption has to say."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from matplotlib.figure import Figure

from sspo_cli.report.figures.curves import ALPHA, by_method_figure, cost_figure, grid_figure, smoothed_figure
from sspo_cli.report.figures.gates import CAPTION, gates_figure
from sspo_cli.report.figures.scores import final_figure, scores_by_step_figure
from sspo_cli.report.figures.sensitivity import sensitivity_figure
from sspo_cli.report.figures.staleness import by_mu_figure, series_of, staleness_figure
from sspo_cli.report.figures.style import save
from sspo_cli.report.figures.training import training_figure
from sspo_cli.report.figures.weights import weights_figure
from sspo_cli.report.measurements import best_configurations, by, final
from sspo_cli.report.runs import Collection, Group, Select, short_settings

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
    chosen, how = best_of_each(groups, select)
    best = [replace(group, label=group.variant, differs={}) for group in chosen]  # one of each needs no longer name
    series = series_of(best)
    if groups:
        yield from _training_curves(groups, best, how)
    for name, same in _apart("staleness", series, lambda same: same[0].start):
        caption = (
            f"By μ: Pass@1 {SELECTED[select]}; reward and entropy, the means of the last tenth of the steps; the share of "
            f"tokens with w < 0.5 in the last minibatch of each rollout batch, over all steps. Means over {_seeds(same)}, bars "
            f"from the lowest seed to the highest. {how}"
        )
        yield Drawing(name, "What staleness does", caption.rstrip(), staleness_figure(same, select))
    if final_scores := final_figure(collection, select):
        caption = f"Pass@1 {SELECTED[select]}; ticks: lowest and highest seed; grey: before RL."
        yield Drawing("pass-at-1", "Pass@1", f"{caption} {INTERVALS}", final_scores)
    if by_step := scores_by_step_figure(best):
        caption = f"Pass@1 of finished runs during training, means over {_seeds(best)}, side by side around each step."
        yield Drawing("pass-at-1-by-step", "Pass@1 by step", f"{caption} {INTERVALS}", by_step)
    grids = [same for same in _by_setting(groups) if any(group.differs for group in same)]
    for name, same in _apart("sensitivity", grids, _settings(grids)):
        caption = (
            f"Every configuration of each method and gate, with its {_seeds(same)}: Pass@1 {SELECTED[select]}, and the mean "
            f"reward of the last tenth of the steps. On grey, where there are several: the chosen one. {how}"
        )
        title = _titled("Sensitivity to the hyperparameters", same, groups)
        yield Drawing(name, title, caption.rstrip(), sensitivity_figure(same, chosen, select))
    yield from _curves_in_detail(groups, best, series, how)
    for name, same in _apart("weights", settings := _by_setting(best), _settings(settings)):
        if measured := weights_figure(same):
            caption = (
                f"Measured distribution of the token weights w(ρ) over all steps and {_seeds(same)}, by the sign of Â, in bins "
                "of 0.05, the last one open; the darker, the staler the minibatch. In the first minibatch of a rollout, ρ = 1."
            )
            yield Drawing(name, _titled("Token weights in training", same, groups), caption, measured)
    yield Drawing("gates", "The gates against clip", CAPTION, gates_figure())
    for name, (group,) in _apart(
        "training",
        [[group] for group in groups] if len(groups) <= CROWDED else [],
        lambda same: f"{same[0].setting} {same[0].label}",
    ):
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
    rewards = [reward for run in group.counted if (reward := final(run, "reward/mean")) is not None]
    return fmean(rewards) if rewards else float("-inf")


def _training_curves(groups: Sequence[Group], best: Sequence[Group], how: str) -> Iterator[Drawing]:
    crowded = max(map(len, by(groups, lambda group: group.setting).values())) > CROWDED
    for name, metric in CURVES.items():
        drawn = best if crowded else groups
        caption = f"{_curves_caption(drawn)} {how if crowded else ''}".rstrip()
        yield Drawing(name, f"{NAMES[name]} by step", caption, grid_figure(drawn, metric))
    smoothing = f"Exponentially smoothed with α = {ALPHA}, bias-corrected. Means over {_seeds(best)}."
    yield Drawing("best", "Reward and entropy, smoothed", f"{smoothing} {how}".rstrip(), smoothed_figure(best))
    timed = [group for group in best if all({"time/step", "tokens"} <= set(run.metrics) for run in group.counted)]
    if timed:
        caption = f"{smoothing} Wall time is without evaluations and checkpoints. {how}".rstrip()
        yield Drawing("cost", "Reward by wall time and by sampled tokens", caption, cost_figure(timed))


def _curves_in_detail(
    groups: Sequence[Group], best: Sequence[Group], series: Sequence[list[Group]], how: str
) -> Iterator[Drawing]:
    """A panel for each method and gate: of those that were run at several μ, by μ; and of each crowded setting."""
    for name, metric in CURVES.items():
        for file, same in _apart(f"{name}-by-mu", series, lambda same: same[0].start):
            caption = f"{_curves_caption(same)} The darker, the larger μ. {how}".rstrip()
            yield Drawing(file, f"{NAMES[name]} by μ", caption, by_mu_figure(same, metric))
    by_mu = {group.setting for same in series for group in same}
    crowded = [
        same
        for same in _by_setting(groups)
        if len(same) > CROWDED and (same[0].setting not in by_mu or any(group.differs for group in same))
    ]
    for name, metric in CURVES.items():
        for file, same in _apart(f"{name}-by-method", crowded, _settings(crowded)):
            caption = f"{_curves_caption(same)} A panel for each method; grey: the range of the means of the others."
            title = _titled(f"{NAMES[name]}, method by method", same, groups)
            yield Drawing(file, title, caption, by_method_figure(same, metric))


def _by_setting(groups: Sequence[Group]) -> list[list[Group]]:
    return list(by(groups, lambda group: group.setting).values())


def _settings(each: Sequence[list[Group]]) -> Callable[[list[Group]], str]:
    """Tells them apart by their settings."""
    names = short_settings(group for same in each for group in same)
    return lambda same: names[same[0].setting]


def _titled(title: str, same: Sequence[Group], groups: Sequence[Group]) -> str:
    return f"{title}: {same[0].setting}" if len({group.setting for group in groups}) > 1 else title


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


def _apart(name: str, each: Sequence[list[Group]], told: Callable[[list[Group]], str]) -> list[tuple[str, list[Group]]]:
    """With the name of a figure of its own: `name` where there is one, else `name` with what is told of it."""
    if len(each) == 1:
        return [(name, each[0])]
    return [(re.sub(r"[^a-z0-9.]+", "-", f"{name}-{told(same)}".lower()).strip("-"), same) for same in each]
