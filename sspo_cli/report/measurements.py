"""Evaluations of many runs, put side by side: over seeds, over steps, and what is missing."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import pandas as pd

from sspo_cli.report.runs import (
    MEASUREMENT,
    VALIDATION,
    BareModel,
    Collection,
    Group,
    Run,
    Select,
    distinguish,
    method_name,
)
from sspo_cli.statistics import wilson

T = TypeVar("T")

SHARES = ("pass_at_1", "sd", "low", "high", "lowest_seed", "highest_seed")


def mean_over_seeds(runs: list[Run], metric: str) -> pd.Series:
    """By step, at the steps that every run has: a mean over changing seeds would jump where one ends."""
    columns = [run.metrics[metric] for run in runs if metric in run.metrics]
    return pd.concat(columns, axis=1).mean(axis=1, skipna=False).dropna() if columns else pd.Series(dtype=float)


def final(run: Run, metric: str) -> float | None:
    """The mean over the last tenth of its steps; None where none of them has it."""
    if metric not in run.metrics:
        return None
    values = run.metrics[metric].iloc[-max(1, len(run.metrics) // 10) :].dropna()
    return None if values.empty else float(values.mean())


def evaluations(groups: Sequence[Group]) -> pd.DataFrame:
    """Every evaluation of a finished run, validation included.

    `group` is its group's place in the list, `column` a heading for its measurement.
    """
    rows = [
        {**evaluation, "group": number, "seed": run.options.seed}  # not the evaluation's own seed, that of its sampling
        for number, group in enumerate(groups)
        for run in group.runs
        if run.finished
        for evaluation in run.evaluations
    ]
    frame = pd.DataFrame(rows, columns=["group", "seed", *MEASUREMENT, "step", "correct"])
    return with_headings(frame.sort_values(["group", "step"], kind="stable", ignore_index=True))


def with_headings(rows: pd.DataFrame) -> pd.DataFrame:
    """Evaluations with their heading as `column`: the benchmark, and what tells its measurements apart where it has several."""
    measurements = rows[[*MEASUREMENT]].drop_duplicates()
    details = distinguish(list(measurements["benchmark"]), measurements.to_dict("records"))
    headings = [
        f"{name} ({detail})" if detail else name
        for name, detail in zip(measurements["benchmark"], details, strict=True)
    ]
    return rows.merge(measurements.assign(column=headings), on=[*MEASUREMENT], how="left")


def selected(groups: Sequence[Group], select: Select) -> pd.DataFrame:
    """Of the evaluations those at the selected step of their run."""
    steps = {(n, run.options.seed): run.selected_step(select) for n, group in enumerate(groups) for run in group.runs}
    rows = evaluations(groups)
    at = [steps[key] for key in zip(rows["group"], rows["seed"], strict=True)]
    return rows[rows["step"] == pd.Series(at, index=rows.index, dtype=float)]


def over_seeds(rows: pd.DataFrame, by: Sequence[str] = ("group", "step")) -> pd.DataFrame:
    """Pass@1 by those columns and measurement: the mean over the seeds with its standard deviation, the mean's 95 % interval,
    the lowest and the highest seed.

    The interval is Wilson's for the n problems and the mean number solved, rounded. It is not for n times seeds: the
    seeds answer the same problems, and before training they may even be the same model. The deviation is that of a
    sample, and NaN for one seed.
    """
    key = [*by, *MEASUREMENT, "column"]
    summaries = []
    for values, same in rows.groupby(key, dropna=False, sort=False):
        n, samples = int(same["n"].iloc[0]), int(same["samples"].iloc[0])
        shares = same["correct"] / (n * samples)
        low, high = wilson(round(same["correct"].mean() / samples), n)
        seeds = ", ".join(map(str, sorted(same["seed"].dropna().astype(int).unique())))
        summaries.append([*values, seeds, shares.mean(), shares.std(), low, high, shares.min(), shares.max()])
    return pd.DataFrame(summaries, columns=[*key, "seeds", *SHARES])


def gain(cells: Mapping[str, float], base: Mapping[str, float]) -> float | None:
    """Δ Avg in points: the mean over the base's columns of cell − base, of the numbers as printed (one decimal), so that a
    reader can check it. None where one of the cells, or the base, is missing."""
    if not base or not base.keys() <= cells.keys():
        return None
    return round(fmean(round(cells[column], 1) - round(base[column], 1) for column in base), 9)


@dataclass(frozen=True)
class Measured:
    """An evaluation that counts. seed  the run's; None for a bare model"""

    source: Run | BareModel
    seed: int | None
    evaluation: dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A line of the tables.

    kind           BASE (before RL, after the cold start), BARE (a model that `sspo eval` measured) or TRAINED
    configuration  the group's hyperparameters
    measured       one for each benchmark and seed; validation is not among them
    """

    setting: str
    model: str
    kind: str
    label: str
    method: str
    gate: str
    configuration: str
    measured: list[Measured]


BASE, BARE, TRAINED = "base", "bare model", "trained"


def lines(collection: Collection, groups: Sequence[Group], select: Select) -> list[Line]:
    """By setting: its base, its bare models, those of `groups` that have a finished run with an evaluation at the selected step.

    Bare models of no setting come last, with their name for a setting.
    """
    found = []
    for setting in collection.settings:
        same = [group for group in collection.groups if group.setting == setting]
        model = same[0].model
        found.append(Line(setting, model, BASE, BASE, "", "", "", base_of(same)))
        found += [_bare_line(setting, bare) for bare in collection.bare_models if bare.name == model]
        for group in groups:
            if group.setting == setting:
                at = {run.path: run.selected_step(select) for run in group.runs}
                measured = [
                    Measured(run, run.options.seed, evaluation)
                    for run in group.runs
                    for evaluation in tests_of(run)
                    if evaluation["step"] == at[run.path]
                ]
                found.append(
                    Line(
                        setting, model, TRAINED, group.label, group.method, group.gate, group.hyperparameters, measured
                    )
                )
    models = {group.model for group in collection.groups}
    found += [_bare_line(bare.name, bare) for bare in collection.bare_models if bare.name not in models]
    return [line for line in found if line.measured]


def tests_of(source: Run | BareModel) -> list[dict[str, Any]]:
    """Its evaluations but for those on the validation problems."""
    return [evaluation for evaluation in source.evaluations if evaluation["benchmark"] != VALIDATION]


def pass_at_1(lines: Sequence[Line]) -> pd.DataFrame:
    """As `over_seeds`, by the place of the line as `line`."""
    rows = [
        {**measured.evaluation, "line": place, "seed": measured.seed}
        for place, line in enumerate(lines)
        for measured in line.measured
    ]
    frame = pd.DataFrame(rows, columns=["line", "seed", *MEASUREMENT, "step", "correct"])
    return over_seeds(with_headings(frame), by=["line"])


def headed(lines: Sequence[Line]) -> list[tuple[Line, str, list[Measured]]]:
    """Each line, heading and what was measured for them."""
    rows = [(line, measured) for line in lines for measured in line.measured]
    frame = pd.DataFrame([measured.evaluation for _, measured in rows], columns=[*MEASUREMENT])
    columns = list(with_headings(frame)["column"])
    found: dict[tuple[int, str], tuple[Line, str, list[Measured]]] = {}
    for (line, measured), column in zip(rows, columns, strict=True):
        found.setdefault((id(line), column), (line, column, []))[2].append(measured)
    return list(found.values())


def best_configurations(
    groups: Sequence[Group], select: Select, key: Callable[[Group], Any] = lambda g: (g.setting, g.method, g.gate)
) -> tuple[list[Group], list[str]]:
    """Of the groups that share a key, the one with the best mean validation Pass@1 over its seeds; never by a test score.

    All of them where one that has a finished run has no validation, or another one. Also returns a sentence for each
    choice, and for each that could not be made.
    """
    chosen: list[Group] = []
    notes = []
    for same in by(groups, key).values():
        candidates = [group for group in same if any(run.finished for run in group.runs)] or same
        if len(candidates) == 1:
            chosen += candidates
            continue
        scores = [_validation_score(group, select) for group in candidates]
        if None in scores or len({measurement for measurement, _ in filter(None, scores)}) > 1:
            chosen += candidates
            notes.append(
                f"{method_name(same[0].method)} in {same[0].setting}: all {len(candidates)} configurations are shown, because "
                "they have no common validation to choose by (`evaluation.validation`), and a test score must not choose."
            )
            continue
        ranked = sorted(zip(filter(None, scores), candidates, strict=True), key=lambda pair: -pair[0][1])
        chosen.append(ranked[0][1])
        others = ", ".join(f"{group.label} {100 * score:.1f}" for (_, score), group in ranked[1:])
        notes.append(
            f"{ranked[0][1].label} in {same[0].setting} is shown for its mean validation Pass@1 of "
            f"{100 * ranked[0][0][1]:.1f} %; not shown: {others}."
        )
    return [group for group in groups if group in chosen], notes


def _validation_score(group: Group, select: Select) -> tuple[tuple[Any, ...], float] | None:
    """How it was measured, and its mean over the finished runs at the selected step; None where one has none."""
    finished = [run for run in group.runs if run.finished]
    rows = [row for run in finished for row in run.validations if row["step"] == run.selected_step(select)]
    measurements = {measurement_of(row) for row in rows}
    if not rows or len(rows) < len(finished) or len(measurements) > 1:
        return None
    return measurements.pop(), fmean(row["pass_at_1"] for row in rows)


def _bare_line(setting: str, bare: BareModel) -> Line:
    measured = [Measured(bare, None, evaluation) for evaluation in tests_of(bare)]
    return Line(setting, bare.name, BARE, f"{bare.name} by sspo eval", "", "", "", measured)


def base_of(groups: Sequence[Group]) -> list[Measured]:
    """The evaluations of before the first step: the runs of a setting start from the same model, so one of those that agree
    stands for all; all of them where they differ."""
    measured = [
        Measured(run, run.options.seed, evaluation)
        for group in groups
        for run in group.runs
        for evaluation in tests_of(run)
        if evaluation["step"] == 0
    ]
    alike = by(measured, lambda m: measurement_of(m.evaluation))
    return [
        m for same in alike.values() for m in (same if len({m.evaluation["correct"] for m in same}) > 1 else same[:1])
    ]


def measurement_of(evaluation: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(evaluation[name] for name in MEASUREMENT)


def by(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """In the order of their first ones."""
    found: dict[Any, list[T]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return found
