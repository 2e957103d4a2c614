"""What run folders hold, read into memory: runs, and models that `sspo eval` measured outside a run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sspo_cli.config import VALIDATION, RunOptions
from sspo_cli.errors import UserError
from sspo_cli.tracking.files import read_json, read_jsonl
from sspo_cli.tracking.measurement import MEASUREMENT, comparable
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import ANSWER, MEASURED_MODEL

# Which checkpoint's numbers go into the tables: the one after the last step, or the best one by validation.
Select = Literal["last", "best"]

PART = "/"  # between the name of a benchmark and that of a part of it


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run folder says. Each is equal to itself only, and can be a key.

    state        as in status.json, or "killed" where that says running and no process writes the run
    step         optimizer steps taken
    started      when it was first started; None in a folder that does not say
    metrics      a row for each optimizer step, indexed by it
    evaluations  the rows of eval/summary.json, each with all of MEASUREMENT
    data         what config.json says of the training problems; empty in a folder of an older version
    extended     the extensions of its steps, as config.json says them
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

    @property
    def left_out(self) -> str | None:
        """Name the training problems that were left out because a benchmark asks them; None if there are none."""
        left_out = self.data.get("left_out") or {}
        return f"{left_out['problems']} problems of benchmarks ({left_out['fingerprint']})" if left_out else None

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def seconds(self) -> float | None:
        """Wall time of all optimizer steps, evaluations and checkpoints not counted; None where no step says."""
        return float(self.metrics["time/step"].sum()) if "time/step" in self.metrics else None

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The evaluations on held-out training problems that training made, by step: those that may be compared."""
        return comparable(row for row in self.evaluations if row["benchmark"] == VALIDATION)

    def selected_step(self, select: Select) -> int | None:
        """Return the step whose numbers go into the tables; None for an unfinished run, or one with no validation to go by."""
        if not self.finished:
            return None
        if select == "last":
            return self.options.steps
        best = max(self.validations, key=lambda row: row["pass_at_1"], default=None)  # the first of equal ones
        return None if best is None else int(best["step"])

    def final(self, metric: str) -> float | None:
        """Average a metric over the last tenth of the steps; None where none of them has it."""
        if metric not in self.metrics:
            return None
        values = self.metrics[metric].iloc[-max(1, len(self.metrics) // 10) :].dropna()
        return None if values.empty else float(values.mean())

    def weights(self) -> list[dict[str, Any]]:
        """Read the histograms of token weights; none in a run without. Raises UserError for a damaged file."""
        return RunFolder(self.path).weights()


@dataclass(frozen=True, eq=False)
class BareModel:
    """A model that `sspo eval` measured outside a run.

    name         the last part of its hub name or path
    evaluations  as those of a RunRecord; their step is 0
    """

    path: Path
    name: str
    evaluations: list[dict[str, Any]]


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Find the folders of runs and of measured models in `paths` and below them, each once.

    A run holds config.json and status.json (model folders have a config.json too), a measured model holds model.json and
    eval/. Nothing inside one of them is another.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        for folder, below, files in os.walk(path):
            names = {*files, *below}  # a folder where a file should be is a damaged run, not none
            if {"config.json", "status.json"} <= names or {"model.json", "eval"} <= names:
                folders.setdefault(Path(folder).resolve(), Path(folder))
                below.clear()
            below.sort()
    return list(folders.values())


def read_record(path: Path) -> RunRecord | BareModel:
    """Read a folder that `find_runs` found. Raises UserError for an unreadable or damaged file."""
    return read_run(path) if (path / "status.json").exists() else read_bare_model(path)


def read_run(path: Path) -> RunRecord:
    """Read a run. Raises UserError for an unreadable or damaged file."""
    folder = RunFolder.open(path)
    status = folder.status
    folder.weights()  # they are drawn later; a damaged file is reported while the run can still be left out
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
    )


def read_bare_model(path: Path) -> BareModel:
    """Read what `sspo eval` left of a model. Raises UserError for an unreadable or damaged file."""
    content = read_json(path / "model.json", MEASURED_MODEL)
    return BareModel(path, Path(content["model"]).name, _evaluations(RunFolder(path)))


def answers(source: RunRecord | BareModel, benchmark: str) -> list[dict[str, Any]]:
    """Read eval/<benchmark>.jsonl, one row for each problem and sample; none without such a file.

    Of a part of a benchmark, `mint/gsm8k`, its rows. Raises UserError for a damaged file.
    """
    name, _, part = benchmark.partition(PART)
    rows = read_jsonl(RunFolder(source.path).eval / f"{name}.jsonl", ANSWER)
    return [row for row in rows if row.get("part") == part] if part else rows


def short_names(paths: Sequence[Path]) -> tuple[str, dict[Path, str]]:
    """Return the folder that holds all paths, relative to the current one if it is below, and each path's name in it."""
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    relative = os.path.relpath(common)
    names = {path: os.path.relpath(path, common) for path in paths}
    return common if relative.startswith("..") else relative, names


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """Read the evaluations, each with all of MEASUREMENT: older versions took one sample, and did not say so."""
    rows = folder.evaluations()
    for row in rows:
        if not {"n", "correct", "pass_at_1"} <= row.keys() or row["correct"] > row["n"] * row.get("samples", 1):
            raise UserError(
                f"{folder.summary_path} does not say of {row['benchmark']} how many of its problems are solved"
            )
    known = dict.fromkeys((*MEASUREMENT, "identity", "path", "trained_on"))
    return [{**known, "samples": 1, **row} for whole in rows for row in (whole, *_parts(whole))]


def _parts(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a benchmark of several kinds of problems as evaluations of their own."""
    name = evaluation["benchmark"]
    return [
        {**evaluation, **of_part, "benchmark": f"{name}{PART}{part}"}
        for part, of_part in evaluation.get("parts", {}).items()
        if name != VALIDATION
    ]
