"""Selection of the configuration that represents a method, and of the results that others are compared with."""

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
    """Choose the group with the best mean validation Pass@1 among the groups of each key, never by a test score.

    If the finished runs of a key have no common validation, all of its groups are returned. Also returns a sentence for each
    choice, and for each key without a choice.
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
    """Pair every result with the best trained result and with the strongest baseline, without repeating a pair.

    Each pair comes with the role of its second result: `best`, `strongest baseline` or both, or `tied for …` if another result
    has the same score. `method_of` returns an empty text for a result that was not trained.
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
    """Return the measurement and the mean validation Pass@1 of the finished runs at their selected steps.

    Returns None if a run has no validation at that step, or if the runs' measurements differ.
    """
    rows = [row for run in group.finished for row in run.validations if row["step"] == run.selected_step(select)]
    measurements = {measurement_of(row) for row in rows}
    if not rows or len(rows) < len(group.finished) or len(measurements) > 1:
        return None
    return measurements.pop(), fmean(row["pass_at_1"] for row in rows)
