"""The figures of a report with their captions."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import NamedTuple

from matplotlib.figure import Figure

from sspo_cli.errors import quantity
from sspo_cli.report.choices import best_configurations
from sspo_cli.report.collect import Collection
from sspo_cli.report.figures.curves import (
    ALPHA,
    by_method_figure,
    by_seconds,
    by_tokens,
    cost_figure,
    equal_curves,
    grid_figure,
    has_cost,
    has_curve,
    mean_of,
    smoothed_figure,
)
from sspo_cli.report.figures.gates import CAPTION, gates_figure
from sspo_cli.report.figures.scores import final_figure, scores_by_step_figure
from sspo_cli.report.figures.sensitivity import sensitivity_figure
from sspo_cli.report.figures.staleness import by_mu_figure, series_of, staleness_figure
from sspo_cli.report.figures.style import save
from sspo_cli.report.figures.training import left_out_panels, training_figure
from sspo_cli.report.figures.weights import weights_figure
from sspo_cli.report.groups import RunGroup, grouped, short_settings
from sspo_cli.report.records import Select

__all__ = ["Drawing", "best_of_each", "figures", "save"]

# Up to this number of configurations, each configuration has its own figure. If a panel has more, each method also has its own
# panel.
CROWDED = 5
CURVES = {"reward": "reward/mean", "entropy": "policy/entropy"}
NAMES = {"reward": "Reward", "entropy": "Token entropy"}
INTERVALS = "Intervals are 95 % (Wilson), over problems, not over seeds."
SELECTED = {"last": "after the last step", "best": "at the best step by validation"}


class Drawing(NamedTuple):
    """A figure with the name of its files, its title and its caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def figures(collection: Collection) -> Iterator[Drawing]:
    """Draw every figure for which the runs have data, lazily.

    Single configurations have figures only if there are at most `CROWDED`. A report of one configuration has no figure that
    repeats one of the panels of that configuration. Raises UserError for a damaged file of a run.
    """
    groups = [group for group in collection.groups if any(len(run.metrics) for run in group.runs)]
    chosen, how = best_of_each(groups, collection.select)
    best = [replace(group, label=group.variant, differs={}) for group in chosen]  # each variant occurs once
    series = series_of(best)
    yield from _training_curves(groups, best, how)
    yield from _scores(collection, groups, chosen, best, series, how)
    yield from _curves_in_detail(groups, best, series, how)
    for name, members in _named("weights", settings := _by_setting(best), _setting_names(settings)):
        if measured := weights_figure(members):
            caption = (
                f"Measured distribution of the token weights w(ρ) over all steps and {_seeds(members)}, by the sign of Â, "
                "in bins of 0.05 (the last bin is open). Darker lines are staler minibatches. In the first minibatch of "
                "a rollout batch, ρ = 1."
            )
            yield Drawing(name, _titled("Token weights in training", members, groups), caption, measured)
    yield Drawing("gates", "The gates against clip", CAPTION, gates_figure())
    each = [[group] for group in groups if _has_own_figure(group)] if len(groups) <= CROWDED else []
    for name, (group,) in _named("training", each, lambda members: f"{members[0].setting} {members[0].label}"):
        caption = f"{_curves_caption([group])} Attenuated: w < 0.5, in the last minibatch of each rollout. {INTERVALS}"
        caption = f"{caption} {left_out_panels(collection.frame, group)}".rstrip()
        yield Drawing(name, f"{group.label}, {group.setting}", caption, training_figure(collection.frame, group))


def _has_own_figure(group: RunGroup) -> bool:
    return any(has_curve(group, metric) for metric in CURVES.values())


def best_of_each(groups: Sequence[RunGroup], select: Select) -> tuple[list[RunGroup], str]:
    """Choose the best configuration of each method and gate in each setting, and describe in a sentence how.

    The choice is by validation, as in table 1, or without a common validation by the mean reward of the last tenth of the
    steps.
    """
    validated, _ = best_configurations(groups, select)
    variants = grouped(validated, lambda group: (group.setting, group.method, group.gate))
    best = [max(candidates, key=_final_reward) for candidates in variants.values()]
    if len(best) == len(groups):
        return best, ""
    how = "validation Pass@1, as in table 1"
    if len(best) < len(validated):
        how = "validation Pass@1 or, without a common validation, by the mean reward of the last tenth of the steps"
    return best, f"If a method has several configurations, the figure shows the best by {how}."


def _final_reward(group: RunGroup) -> float:
    rewards = group.final("reward/mean")
    return fmean(rewards) if rewards else float("-inf")


def _training_curves(groups: Sequence[RunGroup], best: Sequence[RunGroup], how: str) -> Iterator[Drawing]:
    crowded = max(map(len, _by_setting(groups)), default=0) > CROWDED
    for name, metric in CURVES.items():
        drawn = [group for group in (best if crowded else groups) if has_curve(group, metric)]
        if drawn and len(groups) > 1:
            notes = [how] if crowded else []
            notes.append(equal_curves(drawn, partial(mean_of, metric=metric)))
            caption = " ".join(filter(None, [_curves_caption(drawn), *notes]))
            yield Drawing(name, f"{NAMES[name]} by step", caption, grid_figure(drawn, metric))
    best = [group for group in best if any(has_curve(group, metric) for metric in CURVES.values())]
    if not best:
        return
    smoothing = f"Exponentially smoothed with α = {ALPHA}, bias-corrected. Means over {_seeds(best)}."
    equal = equal_curves(best, *(partial(mean_of, metric=metric) for metric in CURVES.values()))
    recorded = [name for name, metric in CURVES.items() if any(has_curve(group, metric) for group in best)]
    caption = " ".join(filter(None, [smoothing, how, equal]))
    if len(groups) == 1:
        caption += (
            " The figure of this configuration shows the curves without smoothing. The cost has no figure, because it would "
            "compare configurations."
        )
    yield Drawing("best", f"{' and '.join(recorded).capitalize()}, smoothed", caption, smoothed_figure(best))
    timed = [group for group in best if has_cost(group)]
    if timed and len(groups) > 1:
        notes = ["Wall time excludes evaluations and checkpoints.", how, equal_curves(timed, by_seconds, by_tokens)]
        caption = " ".join(filter(None, [smoothing, *notes]))
        yield Drawing("cost", "Reward by wall time and by sampled tokens", caption, cost_figure(timed))


def _scores(
    collection: Collection,
    groups: Sequence[RunGroup],
    chosen: Sequence[RunGroup],
    best: Sequence[RunGroup],
    series: Sequence[list[RunGroup]],
    how: str,
) -> Iterator[Drawing]:
    """Draw Pass@1 by staleness, for the selected checkpoints, by step, and by hyperparameters."""
    frame, when = collection.frame, SELECTED[collection.select]
    for name, members in _named("staleness", series, lambda members: members[0].start):
        caption = (
            f"By μ: Pass@1 {when}; reward and entropy as means over the last tenth of the steps; and the share of tokens "
            f"with w < 0.5 in the last minibatch of each rollout batch, over all steps. Means over {_seeds(members)}; bars "
            f"range from the lowest seed to the highest. {how}"
        )
        yield Drawing(name, "Effect of staleness", caption.rstrip(), staleness_figure(frame, members))
    if final_scores := final_figure(frame, collection.groups):
        caption = f"Pass@1 {when}; ticks: lowest and highest seed; grey: before RL."
        yield Drawing("pass-at-1", "Pass@1", f"{caption} {INTERVALS}", final_scores)
    is_repeated = len(groups) == 1 and _has_own_figure(groups[0])
    if not is_repeated and (by_step := scores_by_step_figure(frame, best)):
        caption = f"Pass@1 of finished runs during training, means over {_seeds(best)}, side by side around each step."
        yield Drawing("pass-at-1-by-step", "Pass@1 by step", f"{caption} {INTERVALS}", by_step)
    grids = [members for members in _by_setting(groups) if any(group.differs for group in members)]
    for name, members in _named("sensitivity", grids, _setting_names(grids)):
        caption = (
            f"Every configuration of each method and gate, with its {_seeds(members)}: Pass@1 {when}, and the mean "
            f"reward of the last tenth of the steps. The chosen one of several has a grey background. {how}"
        )
        title = _titled("Sensitivity to the hyperparameters", members, groups)
        yield Drawing(name, title, caption.rstrip(), sensitivity_figure(frame, members, chosen))


def _curves_in_detail(
    groups: Sequence[RunGroup], best: Sequence[RunGroup], series: Sequence[list[RunGroup]], how: str
) -> Iterator[Drawing]:
    """Draw figures with a panel for each method and gate: by μ if there are several, and for each crowded setting."""
    for curve, metric in CURVES.items():
        recorded = [with_curve for members in series if (with_curve := [g for g in members if has_curve(g, metric)])]
        for name, members in _named(f"{curve}-by-mu", recorded, lambda members: members[0].start):
            caption = f"{_curves_caption(members)} Darker lines have a larger μ. {how}".rstrip()
            yield Drawing(name, f"{NAMES[curve]} by μ", caption, by_mu_figure(members, metric))
    by_mu = {group.setting for members in series for group in members}
    crowded = [
        members
        for members in _by_setting(groups)
        if len(members) > CROWDED and (members[0].setting not in by_mu or any(group.differs for group in members))
    ]
    for curve, metric in CURVES.items():
        recorded = [with_curve for members in crowded if (with_curve := [g for g in members if has_curve(g, metric)])]
        for name, members in _named(f"{curve}-by-method", recorded, _setting_names(crowded)):
            caption = f"{_curves_caption(members)} A panel for each method; grey: the range of the means of the other methods."
            title = _titled(f"{NAMES[curve]}, method by method", members, groups)
            yield Drawing(name, title, caption, by_method_figure(members, metric))


def _by_setting(groups: Sequence[RunGroup]) -> list[list[RunGroup]]:
    return list(grouped(groups, lambda group: group.setting).values())


def _setting_names(settings: Sequence[list[RunGroup]]) -> Callable[[list[RunGroup]], str]:
    names = short_settings(group for members in settings for group in members)
    return lambda members: names[members[0].setting]


def _titled(title: str, members: Sequence[RunGroup], groups: Sequence[RunGroup]) -> str:
    return f"{title}: {members[0].setting}" if len({group.setting for group in groups}) > 1 else title


def _curves_caption(groups: Sequence[RunGroup]) -> str:
    if max(len(group.runs) for group in groups) == 1:
        return "One seed; no smoothing."
    return f"Thick: mean over {_seeds(groups)}, up to the last step that all seeds have; thin: each seed; no smoothing."


def _seeds(groups: Sequence[RunGroup]) -> str:
    numbers = sorted({len(group.counted) for group in groups})
    if len(numbers) == 1:
        return quantity(numbers[0], "seed")
    return f"{numbers[0]} to {numbers[-1]} seeds"


def _named(
    name: str, parts: Sequence[list[RunGroup]], detail: Callable[[list[RunGroup]], str]
) -> list[tuple[str, list[RunGroup]]]:
    """Name the figure of each part: `name` if there is only one, otherwise `name` with the part's detail."""
    if len(parts) == 1:
        return [(name, parts[0])]
    return [(re.sub(r"[^a-z0-9.]+", "-", f"{name}-{detail(part)}".lower()).strip("-"), part) for part in parts]
