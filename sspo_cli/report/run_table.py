"""The appendix of a report: every run, whether it counts or not."""

import shlex
from typing import Any

import pandas as pd

from sspo_cli.config import flatten
from sspo_cli.report.measurements import final, tests_of, with_headings
from sspo_cli.report.runs import Collection, Run, Select, distinguish, method_name, short_names, short_settings
from sspo_cli.report.table import NOTHING, Cell, Table

SHOWN_ANYWAY = ("seed", "objective.method", "objective.gate")


def runs_table(collection: Collection, select: Select) -> Table:
    """A line for each run, its numbers those of the selected step."""
    members = [(group, run) for group in collection.groups for run in group.runs]
    options = [dict(flatten(run.options.model_dump(mode="json"))) for _, run in members]
    options = [{key: value for key, value in own.items() if key not in SHOWN_ANYWAY} for own in options]
    scores = _scores(collection.runs, select)
    folder, short = short_names([run.path for run in collection.runs])
    settings = short_settings(collection.groups)
    columns = list(dict.fromkeys(column for own in scores for column in own))
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Cell]] = []
    for (group, run), difference, own in zip(members, distinguish([""] * len(options), options), scores, strict=True):
        step = run.selected_step(select)
        numbers: dict[str, float | None] = {
            "seconds": run.seconds,
            "tokens": _last(run, "tokens"),
            "reward": final(run, "reward/mean"),
            "validation": next((100 * row["pass_at_1"] for row in run.validations if row["step"] == step), None),
            "best_step": run.selected_step("best"),
            **{column: own.get(column) for column in columns},
        }
        about = {"run": str(run.path), "setting": group.setting, "method": group.method, "gate": group.gate}
        state = {"state": run.state, "reason": run.reason, "step": run.step, "steps": run.options.steps}
        rows.append({**about, "differences": difference, "seed": run.options.seed, **state, **numbers})
        lines.append(
            {
                "Run": Cell(f"`{short[run.path]}`"),
                "Setting": Cell(settings[group.setting]),
                "Method": Cell(method_name(group.method)),
                "Gate": Cell(group.gate),
                "Differs in": Cell(difference or NOTHING),
                "Seed": Cell(str(run.options.seed), number=run.options.seed),
                "State": Cell(run.state),
                "Steps": Cell(f"{run.step}/{run.options.steps}", number=run.step),
                "Wall time": _number(numbers["seconds"], "{:,.0f} s"),
                "Tokens": _number(numbers["tokens"], "{:,.0f}"),
                "Final reward": _number(numbers["reward"], "{:.2f}"),
                "Validation": _number(numbers["validation"], "{:.1f}"),
                "Best step": _number(numbers["best_step"], "{:.0f}"),
                **{column: _number(numbers[column], "{:.1f}") for column in columns},
            }
        )
    headings = [heading for heading in lines[0] if heading != "Setting" or len(collection.settings) > 1]
    when = "after the last step" if select == "last" else "at the best step by validation"
    notes = [
        f"Run: its folder below `{folder}`.",
        "Differs in: the options in which the runs of this report differ, beside method, gate and seed.",
        "Wall time is that of the optimizer steps, sampling included, evaluations and checkpoints not; tokens are the sampled "
        "ones; the final reward is the mean of the last tenth of the steps (at most 2).",
        f"Validation and benchmarks: Pass@1 in % {when}; unfinished runs have none. Best step: by validation, the earlier of "
        "equal ones.",
    ]
    if offline := [run.path for run in collection.runs if any(run.path.glob("wandb/offline-run-*"))]:
        folders = " ".join(f"{shlex.quote(str(path))}/wandb/offline-run-*" for path in offline)
        notes.append(
            f"To send the {len(offline)} offline run{'s' * (len(offline) > 1)} to wandb: `wandb sync {folders}`"
        )
    body: list[list[Cell] | str] = [[line[heading] for heading in headings] for line in lines]
    return Table("runs", "Every run", pd.DataFrame(rows), headings, body, notes)


def _scores(runs: list[Run], select: Select) -> list[dict[str, float]]:
    """Of each run, Pass@1 in % by heading at the selected step."""
    rows = [
        {"place": place, **evaluation}
        for place, run in enumerate(runs)
        for evaluation in tests_of(run)
        if evaluation["step"] == run.selected_step(select)
    ]
    found: list[dict[str, float]] = [{} for _ in runs]
    if rows:
        for row in with_headings(pd.DataFrame(rows)).to_dict("records"):
            found[row["place"]][row["column"]] = 100 * row["correct"] / (row["n"] * row["samples"])
    return found


def _last(run: Run, metric: str) -> float | None:
    values = run.metrics[metric].dropna().tolist() if metric in run.metrics else []
    return values[-1] if values else None


def _number(value: float | None, form: str) -> Cell:
    return Cell(NOTHING) if value is None else Cell(form.format(value), number=value)
