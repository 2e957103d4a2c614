"""Records read from folders: runs, and models that `sspo eval` measured outside a run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sspo_cli.config import VALIDATION, RunOptions
from sspo_cli.errors import UserError, quantity
from sspo_cli.tracking.files import read_json, read_jsonl
from sspo_cli.tracking.measurement import MEASUREMENT, comparable
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import ANSWER, MEASURED_MODEL

# The checkpoint for the tables: after the last step, or the best by validation.
Select = Literal["last", "best"]

PART = "/"  # separates the names of a benchmark and of its part


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of a run folder. Compared by identity and hashable.

    state        as in status.json, or "killed" if it is "running" and no process writes the run
    step         optimizer steps taken
    started      time of the first start; None if the folder does not record it
    metrics      a row for each optimizer step, indexed by step
    evaluations  rows of eval/summary.json, each with all of MEASUREMENT
    data         training problems according to config.json; empty in a folder of an older version
    extended     extensions of its steps, from config.json
    origin       the checkpoint that it was forked from, with the origin and extensions of that run; empty unless it is a fork
    """

    path: Path
    options: RunOptions
    state: str
    step: int
    reason: str | None
    started: datetime | None
    metrics: pd.DataFrame
    evaluations: list[dict[str, Any]]
    data: dict[str, Any] = field(default_factory=dict)
    extended: list[dict[str, Any]] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def left_out(self) -> str | None:
        """Describe the training problems that were left out because they are in a benchmark; None if there are none."""
        left_out = self.data.get("left_out") or {}
        return (
            f"{quantity(left_out['problems'], 'problem')} of benchmarks ({left_out['fingerprint']})"
            if left_out
            else None
        )

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def seconds(self) -> float | None:
        """Wall time of all optimizer steps, without evaluations and checkpoints; None if no step records it."""
        return float(self.metrics["time/step"].sum()) if "time/step" in self.metrics else None

    @property
    def validations(self) -> list[dict[str, Any]]:
        """Comparable evaluations on held-out training problems, made during training, by step."""
        return comparable(row for row in self.evaluations if row["benchmark"] == VALIDATION)

    def selected_step(self, select: Select) -> int | None:
        """Return the step that the tables show; None if the run is unfinished, or lacks the validation that `best` needs."""
        if not self.finished:
            return None
        if select == "last":
            return self.options.steps
        best = max(self.validations, key=lambda row: row["pass_at_1"], default=None)  # the first of equal ones
        return None if best is None else int(best["step"])

    def final(self, metric: str) -> float | None:
        """Average a metric over the last tenth of the steps; return None if none of them has it."""
        if metric not in self.metrics:
            return None
        values = self.metrics[metric].iloc[-max(1, len(self.metrics) // 10) :].dropna()
        return None if values.empty else float(values.mean())

    @property
    def lineage(self) -> str:
        """Describe the checkpoint that the run was forked from, and its extensions; empty if it has neither."""
        fork = self.origin or (self.options.fork.model_dump() if self.options.fork else {})
        return " and ".join([*_forks(fork), *_extensions(self.extended)])

    def weights(self) -> list[dict[str, Any]]:
        """Read the histograms of token weights, or an empty list. Raises UserError for a damaged file."""
        return RunFolder(self.path).weights()


@dataclass(frozen=True, eq=False)
class BareModel:
    """A model that `sspo eval` measured outside a run.

    name         last part of its hub name or path
    evaluations  as in RunRecord, with step 0
    """

    path: Path
    name: str
    evaluations: list[dict[str, Any]]


def read_record(path: Path) -> RunRecord | BareModel:
    """Read a folder from `named_runs.find_runs`. Raises UserError for an unreadable or damaged file."""
    return read_run(path) if (path / "status.json").exists() else read_bare_model(path)


def read_run(path: Path) -> RunRecord:
    """Read a run. Raises UserError for an unreadable or damaged file."""
    folder = RunFolder.open(path)
    status = folder.status
    folder.weights()  # read now, while a run with a damaged file can still be left out
    state = status["state"]
    if state == "running" and not folder.is_being_written():
        state = "killed"
    rows = folder.metrics()
    metrics = pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame()
    return RunRecord(
        path=path,
        options=folder.config,
        state=state,
        step=status["step"],
        reason=status.get("reason"),
        started=datetime.fromisoformat(status["started"]) if "started" in status else None,
        metrics=metrics.astype(float),
        evaluations=_evaluations(folder),
        data=folder.data,
        extended=folder.extended,
        origin=folder.origin.get("origin", {}),
    )


def read_bare_model(path: Path) -> BareModel:
    """Read the results of `sspo eval` for a model. Raises UserError for an unreadable or damaged file."""
    content = read_json(path / "model.json", MEASURED_MODEL)
    return BareModel(path, Path(content["model"]).name, _evaluations(RunFolder(path)))


def answers(source: RunRecord | BareModel, benchmark: str) -> list[dict[str, Any]]:
    """Read eval/<benchmark>.jsonl, a row for each problem and sample, or an empty list if there is no such file.

    For a part of a benchmark, such as `mint/gsm8k`, only its rows are returned. Raises UserError for a damaged file.
    """
    name, _, part = benchmark.partition(PART)
    rows = read_jsonl(RunFolder(source.path).eval / f"{name}.jsonl", ANSWER)
    return [row for row in rows if row.get("part") == part] if part else rows


def lineages(runs: Iterable[RunRecord]) -> list[str]:
    """Describe the runs that are forks or were extended, in sentences; runs of the same lineage share one."""
    alike: dict[str, list[str]] = {}
    for run in runs:
        if run.lineage:
            alike.setdefault(run.lineage, []).append(f"`{run.path.name}`")
    return [
        f"{names[0]} {lineage}." if len(names) == 1 else f"{', '.join(names)}: each {lineage}."
        for lineage, names in alike.items()
    ]


def short_names(paths: Sequence[Path]) -> tuple[str, dict[Path, str]]:
    """Return the common folder of all paths, relative if it is below the current one, and each path's name in it."""
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    relative = os.path.relpath(common)
    names = {path: os.path.relpath(path, common) for path in paths}
    return common if relative.startswith("..") else relative, names


def _forks(origin: Mapping[str, Any]) -> list[str]:
    """Describe a fork, with the lineage of the run that it was forked from."""
    if not origin:
        return []
    optimizer = "its optimizer" if origin.get("optimizer") else "a new optimizer"
    source = f"`{Path(origin['run']).name}`"
    earlier = " and ".join([*_forks(origin.get("origin", {})), *_extensions(origin.get("extended", []))])
    before = f" ({source} {earlier})" if earlier else ""
    return [f"is a fork of {source} at step {origin['step']} with {optimizer}{before}"]


def _extensions(extended: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"was extended after step {each['after']} from {each['steps'][0]} to {quantity(each['steps'][1], 'step')}"
        for each in extended
    ]


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """Read the evaluations and add missing fields of MEASUREMENT; older versions took one sample and did not record it."""
    rows = folder.evaluations()
    for row in rows:
        if not {"n", "correct", "pass_at_1"} <= row.keys() or row["correct"] > row["n"] * row.get("samples", 1):
            raise UserError(f"{folder.summary_path} has no valid number of solved problems of {row['benchmark']}")
    known = dict.fromkeys((*MEASUREMENT, "identity", "path", "trained_on"))
    return [{**known, "samples": 1, **row} for whole in rows for row in (whole, *_parts(whole))]


def _parts(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a benchmark with several kinds of problems as separate evaluations.

    Older versions did not count the cut answers of a part.
    """
    name = evaluation["benchmark"]
    return [
        {**evaluation, "truncated": None, **of_part, "benchmark": f"{name}{PART}{part}"}
        for part, of_part in evaluation.get("parts", {}).items()
        if name != VALIDATION
    ]
