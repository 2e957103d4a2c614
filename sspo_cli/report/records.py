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

# The checkpoint of each run that the tables show: after the last step, or the best by validation.
Select = Literal["last", "best"]

PART = "/"  # separator of the benchmark and its part in a name such as mint/gsm8k


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of a run folder. Records are compared by identity and are hashable.

    state        state in status.json, or "killed" if status.json says "running" but no process writes the run
    step         number of completed optimizer steps
    started      time of the first start; None if the folder does not record it
    metrics      a row for each optimizer step, indexed by step
    evaluations  rows of eval/summary.json, in which missing fields of MEASUREMENT are None
    data         description of the training problems in config.json; empty if an older version wrote the folder
    extended     extensions of the number of steps, from config.json
    origin       the checkpoint that the run was forked from, with the origin and extensions of the source run; empty if the
                 run is not a fork
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
        """Description of the training problems that were left out because a benchmark contains them; None if there are none."""
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
        """Wall time in seconds of all steps, without evaluations and checkpoints; None if the metrics have no times."""
        return float(self.metrics["time/step"].sum()) if "time/step" in self.metrics else None

    @property
    def validations(self) -> list[dict[str, Any]]:
        """Comparable evaluations on the validation problems, sorted by step (see `comparable`)."""
        return comparable(row for row in self.evaluations if row["benchmark"] == VALIDATION)

    def selected_step(self, select: Select) -> int | None:
        """Return the step that the tables show. Returns None if the run is unfinished, or for `best` if it has no validation."""
        if not self.finished:
            return None
        if select == "last":
            return self.options.steps
        best = max(self.validations, key=lambda row: row["pass_at_1"], default=None)  # the first if tied
        return None if best is None else int(best["step"])

    def final(self, metric: str) -> float | None:
        """Average a metric over the last tenth of the steps; return None if the metric is missing at all of these steps."""
        if metric not in self.metrics:
            return None
        values = self.metrics[metric].iloc[-max(1, len(self.metrics) // 10) :].dropna()
        return None if values.empty else float(values.mean())

    @property
    def lineage(self) -> str:
        """Clauses on the fork and the extensions of the run; empty if the run is not a fork and was never extended."""
        fork = self.origin or (self.options.fork.model_dump() if self.options.fork else {})
        return " and ".join([*_forks(fork), *_extensions(self.extended)])

    def weights(self) -> list[dict[str, Any]]:
        """Read the histograms of token weights; empty if the run has no such file. Raises UserError if the file is damaged."""
        return RunFolder(self.path).weights()


@dataclass(frozen=True, eq=False)
class BareModel:
    """A model outside a run that `sspo eval` measured. Compared by identity and hashable.

    name         last part of its hub name or path
    evaluations  rows as in RunRecord; their step is 0
    """

    path: Path
    name: str
    evaluations: list[dict[str, Any]]


def read_record(path: Path) -> RunRecord | BareModel:
    """Read a run or a measured model. Raises UserError if a file is unreadable or damaged."""
    return read_run(path) if (path / "status.json").exists() else read_bare_model(path)


def read_run(path: Path) -> RunRecord:
    """Read a run. Raises UserError if a file is unreadable or damaged."""
    folder = RunFolder.open(path)
    status = folder.status
    folder.weights()  # read now, because a run with a damaged file can be left out only here
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
    """Read the results of `sspo eval` for a model outside a run. Raises UserError if a file is unreadable or damaged."""
    content = read_json(path / "model.json", MEASURED_MODEL)
    return BareModel(path, Path(content["model"]).name, _evaluations(RunFolder(path)))


def answers(source: RunRecord | BareModel, benchmark: str) -> list[dict[str, Any]]:
    """Read eval/<benchmark>.jsonl, which has a row for each problem and sample.

    For a part of a benchmark, such as `mint/gsm8k`, only the rows of the part are returned. Returns an empty list if there is
    no such file. Raises UserError if the file is damaged.
    """
    name, _, part = benchmark.partition(PART)
    rows = read_jsonl(RunFolder(source.path).eval / f"{name}.jsonl", ANSWER)
    return [row for row in rows if row.get("part") == part] if part else rows


def lineages(runs: Iterable[RunRecord]) -> list[str]:
    """Describe all runs that are forks or were extended, in sentences. Runs with the same lineage share a sentence."""
    alike: dict[str, list[str]] = {}
    for run in runs:
        if run.lineage:
            alike.setdefault(run.lineage, []).append(f"`{run.path.name}`")
    return [
        f"{names[0]} {lineage}." if len(names) == 1 else f"{', '.join(names)}: each {lineage}."
        for lineage, names in alike.items()
    ]


def short_names(paths: Sequence[Path]) -> tuple[str, dict[Path, str]]:
    """Return the common parent folder of all paths, and each path relative to it.

    The folder is given relative to the working directory if it is inside the working directory.
    """
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    relative = os.path.relpath(common)
    names = {path: os.path.relpath(path, common) for path in paths}
    return common if relative.startswith("..") else relative, names


def _forks(origin: Mapping[str, Any]) -> list[str]:
    """Describe a fork and the lineage of its source run; return an empty list if `origin` is empty."""
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
    """Read the evaluations and their parts. Missing fields of MEASUREMENT become None; a missing number of samples becomes 1.

    Raises UserError if a file is damaged.
    """
    rows = folder.evaluations()
    for row in rows:
        if not {"n", "correct", "pass_at_1"} <= row.keys() or row["correct"] > row["n"] * row.get("samples", 1):
            raise UserError(f"{folder.summary_path} has no valid number of solved problems of {row['benchmark']}")
    known = dict.fromkeys((*MEASUREMENT, "identity", "path", "trained_on"))
    return [{**known, "samples": 1, **row} for whole in rows for row in (whole, *_parts(whole))]


def _parts(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a benchmark with several kinds of problems as separate evaluations.

    `truncated` is None if an older version wrote the evaluation, because it did not count the truncated answers of a part.
    """
    name = evaluation["benchmark"]
    return [
        {**evaluation, "truncated": None, **of_part, "benchmark": f"{name}{PART}{part}"}
        for part, of_part in evaluation.get("parts", {}).items()
        if name != VALIDATION
    ]
