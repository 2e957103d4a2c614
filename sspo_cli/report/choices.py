"""Selection of the configuration that represents a method, and of the results that serve as references in comparisons."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeVar

from sspo_cli.report.groups import BASELINES, RunGroup, grouped, method_name
from sspo_cli.report.records import Select
from sspo_cli.tracking.measurement import measurement_of

T = TypeVar("T")


def best_configurations(
    groups: Sequence[RunGroup],
    select: Select,
    key: Callable[[RunGroup], Any] = lambda group: (group.setting, group.method, group.gate),
) -> tuple[list[RunGroup], list[str]]:
    """Choose the group with the best mean validation Pass@1 among the groups with the same key. Test scores are not used.

    key  function that maps a group to its key; by default, the groups of a method and gate in a setting share a key

    Groups without finished runs are considered only if no group of the key has finished runs. If the groups that are considered
    have no common validation, all of them are returned. Also returns sentences that explain the choices.
    """
    chosen: list[RunGroup] = []
    notes = []
    for rivals in grouped(groups, key).values():
        candidates = [group for group in rivals if group.finished] or rivals
        if len(candidates) == 1:
            chosen += candidates
            continue
        name, setting = method_name(rivals[0].method), rivals[0].setting
        scores = [_validation_score(group, select) for group in candidates]
        if None in scores or len({measurement for measurement, _ in filter(None, scores)}) > 1:
            chosen += candidates
            if not candidates[0].finished:  # in no table of scores
                continue
            notes.append(
                f"{name} in {setting}: all {len(candidates)} configurations are shown, because they have no common validation "
                "to choose by (`evaluation.validation`), and test scores must not be used for a choice."
            )
            continue
        ranked = sorted(zip(filter(None, scores), candidates, strict=True), key=lambda pair: -pair[0][1])
        ((_, score), best), *others = ranked
        chosen.append(best)
        tied = sum(rival == score for (_, rival), _ in others)
        first = f", as the first of {tied + 1} equal ones" if tied else ""
        not_shown = ", ".join(f"{group.label} {100 * rival:.1f}" for (_, rival), group in others)
        notes.append(
            f"{best.label} in {setting} is shown for its mean validation Pass@1 of {100 * score:.1f} %{first}; not shown: "
            f"{not_shown}."
        )
    return [group for group in groups if group in chosen], notes


def against_best_and_baseline(
    results: Sequence[T], score: Callable[[T], float], method_of: Callable[[T], str]
) -> list[tuple[T, T, str]]:
    """Pair every result with the best trained result and with the strongest baseline, without duplicate pairs.

    score      function that returns the score of a result
    method_of  function that returns the method of a result, or an empty string if the result was not trained

    Returns (result, reference, role) tuples. The role of the reference is `best`, `strongest baseline` or both. If a competing
    result has the same score as the reference, the role is `tied for …`. Returns an empty list if no result was trained.
    """
    trained = [result for result in results if method_of(result)]
    if not trained:
        return []
    best = max(trained, key=score)
    baselines = [result for result in trained if method_of(result) in BASELINES]
    baseline = max(baselines, key=score, default=best)
    of_best, of_baseline = _role("best", best, trained, score), _role("strongest baseline", baseline, baselines, score)
    if baseline is best:
        role = f"{of_best}, {of_baseline}" if baselines else of_best
        return [(result, best, role) for result in results if result is not best]
    return [
        *((result, best, of_best) for result in results if result is not best and result is not baseline),
        *((result, baseline, of_baseline) for result in results if result is not baseline),
    ]


def _role(name: str, reference: T, rivals: Sequence[T], score: Callable[[T], float]) -> str:
    tied = any(math.isclose(score(rival), score(reference)) for rival in rivals if rival is not reference)
    return f"tied for {name}" if tied else name


def _validation_score(group: RunGroup, select: Select) -> tuple[tuple[Any, ...], float] | None:
    """Return the measurement and the mean validation Pass@1 of the group's finished runs at their selected steps.

    Returns None if there are no finished runs, if one of them has no validation at its selected step, or if their measurements
    differ.
    """
    rows = [row for run in group.finished for row in run.validations if row["step"] == run.selected_step(select)]
    measurements = {measurement_of(row) for row in rows}
    if not rows or len(rows) < len(group.finished) or len(measurements) > 1:
        return None
    return measurements.pop(), fmean(row["pass_at_1"] for row in rows)
