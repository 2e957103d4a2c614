"""The table of all runs, including those that are not counted."""

import shlex
from typing import Any

import pandas as pd

from sspo_cli.config import VALIDATION, flatten
from sspo_cli.report.collect import Collection
from sspo_cli.report.frame import TRAINED, with_headings
from sspo_cli.report.groups import RunGroup, distinguish, effects_of, method_name, short_settings
from sspo_cli.report.records import RunRecord, Select, lineages, short_names
from sspo_cli.report.table import NOTHING, Cell, Table

SHOWN_ANYWAY = ("seed", "objective.method", "objective.gate")
NUMBERS = {  # heading and format, by name in the files
    "seconds": ("Wall time", "{:,.0f} s"),
    "tokens": ("Tokens", "{:,.0f}"),
    "reward": ("Final reward", "{:.2f}"),
    "validation": ("Validation", "{:.1f}"),
    "best_step": ("Best step", "{:.0f}"),
}


def runs_table(collection: Collection) -> Table:
    """Make a line for each run, with the numbers of the selected step."""
    members = [(group, run) for group in collection.groups for run in group.runs]
    options = [dict(flatten(run.options.model_dump(mode="json", exclude={"fork"}))) | _start(run) for _, run in members]
    options = [{key: value for key, value in flat.items() if key not in SHOWN_ANYWAY} for flat in options]
    differing = distinguish([group.setting for group, _ in members], options)
    scores = _scores(collection)
    columns = list(dict.fromkeys(column for of_run in scores.values() for column in of_run))
    settings, several = short_settings(collection.groups), len(collection.settings) > 1
    folder, short = short_names([run.path for run in collection.runs])
    rows: list[dict[str, Any]] = []
    body: list[list[Cell] | str] = []
    for (group, run), differs in zip(members, differing, strict=True):
        numbers = _numbers(run, collection.select) | {column: scores[run].get(column) for column in columns}
        rows.append({**_fields(group, run, differs), **numbers})
        names = [settings[group.setting]] if several else []
        names += [method_name(group.method), group.gate, differs or NOTHING]
        body.append(
            [
                Cell(f"`{short[run.path]}`"),
                *map(Cell, names),
                Cell(str(run.seed), number=run.seed),
                Cell(run.state),
                Cell(f"{run.step}/{run.options.steps}", number=run.step),
                *(_cell(numbers[name], form) for name, (_, form) in NUMBERS.items()),
                *(_cell(numbers[column], "{:.1f}") for column in columns),
            ]
        )
    headings = ["Run", *(["Setting"] if several else []), "Method", "Gate", "Differs in", "Seed", "State", "Steps"]
    headings += [*(heading for heading, _ in NUMBERS.values()), *columns]
    return Table("runs", "Every run", pd.DataFrame(rows), headings, body, _notes(collection, folder))


def _start(run: RunRecord) -> dict[str, Any]:
    """Return the checkpoint that a run was forked from and the steps of its extensions, in the form of `effects_of`."""
    return {key: value for key, value in effects_of(run).items() if key in ("fork", "extended")}


def _fields(group: RunGroup, run: RunRecord, differs: str) -> dict[str, Any]:
    names = {"run": str(run.path), "setting": group.setting, "method": group.method, "gate": group.gate}
    state = {"state": run.state, "reason": run.reason, "step": run.step, "steps": run.options.steps}
    return {**names, "differences": differs, "seed": run.seed, **state}


def _numbers(run: RunRecord, select: Select) -> dict[str, float | None]:
    step = run.selected_step(select)
    tokens = run.metrics["tokens"].dropna().tolist() if "tokens" in run.metrics else []
    return {
        "seconds": run.seconds,
        "tokens": tokens[-1] if tokens else None,
        "reward": run.final("reward/mean"),
        "validation": next((100 * row["pass_at_1"] for row in run.validations if row["step"] == step), None),
        "best_step": run.selected_step("best"),
    }


def _scores(collection: Collection) -> dict[RunRecord, dict[str, float]]:
    """Return Pass@1 in % at the selected step, by run and heading."""
    frame = collection.frame
    rows = with_headings(frame[(frame["kind"] == TRAINED) & frame["selected"] & (frame["benchmark"] != VALIDATION)])
    scores: dict[RunRecord, dict[str, float]] = {run: {} for run in collection.runs}
    for run, column, percent in zip(rows["source"], rows["column"], rows["percent"], strict=True):
        scores[run][column] = percent
    return scores


def _notes(collection: Collection, folder: str) -> list[str]:
    when = "after the last step" if collection.select == "last" else "at the best step by validation"
    notes = [
        f"Run: its folder below `{folder}`.",
        "Differs in: the options in which the runs of one setting differ, in addition to method, gate and seed.",
        "Wall time covers the optimizer steps and sampling, not evaluations and checkpoints. Tokens are the sampled "
        "tokens. The final reward is the mean of the last tenth of the steps (at most 2).",
        f"Validation and benchmarks: Pass@1 in % {when}; unfinished runs have none. Best step: by validation, the earliest if "
        "several are equal.",
    ]
    notes += lineages(collection.runs)
    if offline := [run.path for run in collection.runs if any(run.path.glob("wandb/offline-run-*"))]:
        folders = " ".join(f"{shlex.quote(str(path))}/wandb/offline-run-*" for path in offline)
        notes.append(
            f"To send the {len(offline)} offline run{'s' * (len(offline) > 1)} to wandb: `wandb sync {folders}`"
        )
    return notes


def _cell(value: float | None, form: str) -> Cell:
    return Cell(NOTHING) if value is None else Cell(form.format(value), number=value)
