"""A frame of all evaluations of a report, and the functions that select rows of this frame for tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from sspo_cli.config import VALIDATION
from sspo_cli.report.groups import RunGroup, grouped
from sspo_cli.report.records import BareModel, RunRecord, Select
from sspo_cli.statistics import wilson
from sspo_cli.tracking.measurement import MEASUREMENT, columns, measurement_of

BASE, BARE, TRAINED = "base", "bare model", "trained"

SHARES = ("pass_at_1", "sd", "low", "high", "lowest_seed", "highest_seed", "truncated")


@dataclass(frozen=True, eq=False)
class Line:
    """A line of the tables. Lines are compared by identity and are hashable.

    kind           BASE (before RL, after the cold start), BARE (a model that `sspo eval` measured) or TRAINED
    configuration  hyperparameters of the group, as text; empty unless the line is TRAINED
    group          group of runs that the line shows; None unless the line is TRAINED
    """

    setting: str
    model: str
    kind: str
    label: str
    method: str = ""
    gate: str = ""
    configuration: str = ""
    group: RunGroup | None = None


def evaluation_frame(groups: Sequence[RunGroup], bare_models: Sequence[BareModel], select: Select) -> pd.DataFrame:
    """Build a frame with a row for each table line and evaluation. For each setting: base, bare models, then groups of runs.

    Columns:

    line            the Line
    kind, setting   attributes of the line
    source          the RunRecord or BareModel
    seed            seed of the run; None for a bare model
    selected        True if the evaluation is at the run's selected step; always True for a base and a bare model
    percent         Pass@1 in %, computed from `correct`

    The remaining columns are fields of the evaluation: MEASUREMENT, identity, path, trained_on, step, correct, truncated and
    pass_at_1. A bare model that no run was trained from forms a setting with its own name, after all other settings. Bases and
    bare models have no validation rows.
    """
    rows: list[dict[str, Any]] = []

    def add(line: Line, source: RunRecord | BareModel, evaluation: dict[str, Any], selected: bool) -> None:
        # The evaluation has a seed too, which is for sampling.
        seed = source.seed if isinstance(source, RunRecord) else None
        about = {"line": line, "kind": line.kind, "setting": line.setting, "source": source, "seed": seed}
        rows.append({**evaluation, **about, "selected": selected})

    def add_bare(setting: str, model: BareModel) -> None:
        line = Line(setting, model.name, BARE, f"{model.name} by sspo eval")
        for evaluation in model.evaluations:
            if evaluation["benchmark"] != VALIDATION:
                add(line, model, evaluation, True)

    for setting, members in grouped(groups, lambda group: group.setting).items():
        model = members[0].model
        base = Line(setting, model, BASE, BASE)
        for run, evaluation in _before_training(members):
            add(base, run, evaluation, True)
        for bare in bare_models:
            if bare.name == model:
                add_bare(setting, bare)
        for group in members:
            line = Line(setting, model, TRAINED, group.label, group.method, group.gate, group.configuration, group)
            for run in group.runs:
                step = run.selected_step(select)
                for evaluation in run.evaluations:
                    add(line, run, evaluation, evaluation["step"] == step)
    models = {group.model for group in groups}
    for bare in bare_models:
        if bare.name not in models:
            add_bare(bare.name, bare)
    return _frame(rows)


def table_rows(frame: pd.DataFrame, groups: Sequence[RunGroup]) -> pd.DataFrame:
    """Select the rows of bases, bare models and `groups` at the selected step, without validation; add `with_headings`."""
    is_shown = np.array([line.group is None or line.group in groups for line in frame["line"]], dtype=bool)
    return with_headings(frame[is_shown & frame["selected"] & (frame["benchmark"] != VALIDATION)])


def rows_of(frame: pd.DataFrame, groups: Sequence[RunGroup]) -> pd.DataFrame:
    """Return all evaluations of the groups' finished runs, including validation, sorted by group and step.

    Adds the column `group`, and the headings of `with_headings`. The groups may be formed differently from the groups in the
    frame, but must consist of the frame's runs.
    """
    places = {run: place for place, group in enumerate(groups) for run in group.finished}
    rows = frame[(frame["kind"] == TRAINED) & frame["source"].isin(list(places))]
    rows = rows.assign(place=rows["source"].map(places)).sort_values(
        ["place", "step"], kind="stable", ignore_index=True
    )
    return with_headings(rows.assign(group=[groups[place] for place in rows["place"]]))


def with_headings(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the column `column`, which is the heading of each row's table column.

    A heading is the benchmark's name. If `rows` has several measurements of a benchmark, each heading states the differences.
    Rows of different models may share a heading although their chat templates differ.
    """
    measurements = rows[[*MEASUREMENT]].to_dict("records")
    return rows.assign(column=columns(measurements, [line.model for line in rows["line"]]))


def split(rows: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Group rows by their values in `columns`. Yields (values, rows) in order of first occurrence."""
    yield from rows.groupby(columns[0] if len(columns) == 1 else [*columns], sort=False, dropna=False)


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Summarize Pass@1 over the seeds: mean, standard deviation, 95 % interval of the mean, lowest and highest seed.

    Returns a row for each combination of values of the columns `by` and each measurement. A row also has the mean share of
    truncated answers, which is NaN if unknown. The interval is Wilson's for n problems and the rounded mean number of solved
    problems. It does not use n times the number of seeds, because all seeds answer the same problems. The standard deviation
    is the sample standard deviation, which is NaN for a single seed.
    """
    key = [*by, *MEASUREMENT, "column"]
    summaries = []
    for values, alike in split(_typed(rows), *key):
        n, samples = int(alike["n"].iloc[0]), int(alike["samples"].iloc[0])
        shares = alike["correct"] / (n * samples)
        low, high = wilson(round(alike["correct"].mean() / samples), n)
        seeds = ", ".join(map(str, sorted(alike["seed"].dropna().astype(int).unique())))
        cut = (alike["truncated"] / (n * samples)).mean()
        summaries.append([*values, seeds, shares.mean(), shares.std(), low, high, shares.min(), shares.max(), cut])
    return pd.DataFrame(summaries, columns=[*key, "seeds", *SHARES])


def gain(cells: Mapping[str, float], base: Mapping[str, float]) -> float | None:
    """Compute Δ Avg in percentage points: the mean of `cells` − `base` over the columns of `base`.

    Uses the numbers as printed, with one decimal, so that readers can check the result. Returns None if `base` is empty or if
    `cells` lacks one of its columns.
    """
    if not base or not base.keys() <= cells.keys():
        return None
    return round(fmean(round(cells[column], 1) - round(base[column], 1) for column in base), 9)


def _before_training(groups: Sequence[RunGroup]) -> list[tuple[RunRecord, dict[str, Any]]]:
    """Return the evaluations on benchmarks before the first step.

    The runs of a setting start from the same model. For each measurement on which all runs have the same score, only the
    evaluation of the first run is returned; otherwise the evaluations of all runs are returned.
    """
    tests = [
        (run, evaluation)
        for group in groups
        for run in group.runs
        for evaluation in run.evaluations
        if evaluation["step"] == 0 and evaluation["benchmark"] != VALIDATION
    ]
    alike = grouped(tests, lambda test: measurement_of(test[1])).values()
    return [
        test
        for measured in alike
        for test in (measured if len({row["correct"] for _, row in measured}) > 1 else measured[:1])
    ]


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = ["line", "kind", "setting", "source", "seed", "selected", *MEASUREMENT]
    names += ["identity", "path", "trained_on", "step", "correct", "truncated", "pass_at_1"]
    # As objects, because pandas converts a column of integers to floats if a row of an older version lacks the value.
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    frame = frame.astype({"selected": bool, "step": int, "correct": float, "truncated": float, "pass_at_1": float})
    return frame.assign(percent=(100 * frame["correct"] / (frame["n"] * frame["samples"])).astype(float))


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Convert each column of MEASUREMENT from `object` to the type of its values in these rows."""
    return rows.assign(**{name: pd.Series(rows[name].tolist(), rows.index) for name in MEASUREMENT})
