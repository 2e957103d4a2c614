"""Keep what tables and choices need of every finished run, in files that are small enough to be committed.

`runs.jsonl` has a line for each run; `metrics-STAGE.parquet` has some metrics of each of its optimizer steps. A run that has a
line is not repeated, even if its folder is lost.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pandas as pd

from sspo_cli.sweep.grid import Trial
from sspo_cli.tasks.chains import habits_of
from sspo_cli.tracking.files import write_bytes_atomic, write_text_atomic
from sspo_cli.tracking.run_folder import RunFolder

METRICS = [
    *("minibatch", "tokens", "reward/answer", "reward/format", "groups/equal_reward"),
    *("completions/length", "completions/truncated", "policy/entropy", "policy/grad_norm", "policy/skipped"),
    *("ratio/outside", "ratio/log_std", "ratio/kl", "weights/attenuated"),
    *(f"ratio/{sign}_{name}" for sign in ("positive", "negative") for name in ("log_mean", "outside", "kl")),
    *("weights/positive_attenuated", "weights/negative_attenuated", "sampler/mismatch_mean"),
    *("time/sampling", "time/learning"),
]
CPU = "cpu-seconds"  # a file in the run folder with a line for each attempt
QUESTION = re.compile(r"user\n(.*?)<")
WHOLE = re.compile(r"<think>([^<]*)</think><answer>([^<]*)</answer>")
STEP = re.compile(r"\d+([+-]\d+)=-?\d+")


@dataclass(frozen=True, slots=True)
class Row:
    """A finished run.

    point        the seed and the options that the study varies, by their dotted names
    evaluations  {step, benchmark, n, correct}; after the last step also `solved`, the solved problems as bits in hexadecimal,
                 and before the first and after the last step `modes`, see `modes_of`
    seconds      processor time of all attempts together; sampling and learning time by the clock
    """

    stage: str
    name: str
    revision: str | None
    point: dict[str, Any]
    evaluations: list[dict[str, Any]]
    tokens: int
    skipped: int
    seconds: dict[str, float]

    @property
    def method(self) -> str:
        """Return the method together with its gate."""
        return f"{self.point['objective.method']} {self.point['objective.gate']}"

    def pass_at_1(self, benchmark: str) -> float:
        """Return Pass@1 after the last step."""
        last = max((row for row in self.evaluations if row["benchmark"] == benchmark), key=lambda row: row["step"])
        return last["correct"] / last["n"]

    @classmethod
    def of(cls, stage: str, trial: Trial, folder: Path) -> Self:
        """Read a finished run."""
        run = RunFolder(folder / trial.name)
        last = run.metrics()[-1]
        options = trial.options
        varied = {
            **{f"objective.{name}": value for name, value in options.objective.model_dump().items()},
            "optimizer.learning_rate": options.optimizer.learning_rate,
            "learning.mu": options.learning.mu,
            "rollout.prompts": options.rollout.prompts,
            "rollout.lag": options.rollout.lag,
            "seed": options.seed,
        }
        clocks = pd.DataFrame(run.metrics())[["time/sampling", "time/learning"]].sum()
        cpu = sum(map(float, (run.path / CPU).read_text().split()))
        return cls(
            stage=stage,
            name=trial.name,
            revision=json.loads(run.config_path.read_text()).get("revision"),
            point=varied,
            evaluations=_evaluations(run, options.steps),
            tokens=last["tokens"],
            skipped=last["policy/skipped"],
            seconds={
                "cpu": round(cpu, 1),
                "sampling": round(clocks["time/sampling"], 1),
                "learning": round(clocks["time/learning"], 1),
            },
        )


def _evaluations(run: RunFolder, steps: int) -> list[dict[str, Any]]:
    kept = []
    for summary in run.evaluations():
        row = {key: summary[key] for key in ("step", "benchmark", "n", "correct", "problems", "checker")}
        if summary["step"] in (0, steps):
            lines = (run.eval / f"{summary['benchmark']}.jsonl").read_text().splitlines()
            answers = [answer for answer in map(json.loads, lines) if answer["step"] == summary["step"]]
            row["modes"] = modes_of(answers)
            if summary["step"] == steps:
                row["solved"] = f"{int(''.join(str(int(answer['correct'])) for answer in answers), 2):x}"
        kept.append(row)
    return kept


def modes_of(answers: Iterable[dict[str, Any]]) -> dict[str, list[int]]:
    """Count the completions of task chains and the right ones among them, as {kind or habit: [number, right]}.

    Each completion has one kind, whether it is right or wrong:

    broken      the format is not the one that is asked for
    guessed     the format is right, but there is no step
    other work  the format is right, but the steps have other operands than the question
    work        the format is right, with a step for each operand of the question

    Each habit of the teacher that can do harm in the question is counted separately: `drop`, `sign`, `early`, `guess`; or
    `none`.
    """
    counts: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for answer in answers:
        question = QUESTION.search(answer["prompt"])[1]  # not from the id, which has a prefix for validation problems
        _, *operands = re.findall(r"[+-]?\d+", question)
        habits = habits_of([int(operand) for operand in operands])
        for name in (_mode(operands, answer["completion"]), *(habits or ["none"])):
            counts[name] += 1
            right[name] += answer["correct"]
    return {name: [counts[name], right[name]] for name in sorted(counts)}


def _mode(operands: Sequence[str], completion: str) -> str:
    match = WHOLE.fullmatch(completion)
    if not match:
        return "broken"
    if "=" not in match[1]:
        return "guessed"
    steps = [STEP.fullmatch(text) for text in match[1].split(",")]
    return "work" if [step and step[1] for step in steps] == list(operands) else "other work"


class Ledger:
    """The records of finished runs, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "runs.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = [Row(**json.loads(line)) for line in lines]

    def of_stage(self, stage: str, trials: Sequence[Trial]) -> list[Row] | None:
        """Return the rows of these trials in their order, from any stage; None if one is missing."""
        rows = {row.name: row for row in self.rows}
        return [rows[trial.name] for trial in trials] if all(trial.name in rows for trial in trials) else None

    def missing(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials that have no row yet."""
        kept = {row.name for row in self.rows}
        return [trial for trial in trials if trial.name not in kept]

    def record(self, stage: str, trials: Iterable[Trial], folder: Path) -> None:
        """Add the trials that have finished in `folder` since the last record."""
        finished = [t for t in self.missing(trials) if RunFolder(folder / t.name).status.get("state") == "finished"]
        if not finished:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"metrics-{stage}.parquet"
        parts = [pd.read_parquet(path)] if path.exists() else []
        for trial in finished:
            metrics = pd.DataFrame(RunFolder(folder / trial.name).metrics()).set_index("step").reindex(columns=METRICS)
            parts.append(metrics.astype("float32").assign(run=trial.name).reset_index())
        content = BytesIO()
        whole = pd.concat(parts, ignore_index=True).drop_duplicates(["run", "step"], keep="last")
        whole.assign(run=whole["run"].astype("category")).to_parquet(content, index=False)
        write_bytes_atomic(path, content.getvalue())
        self.rows += [Row.of(stage, trial, folder) for trial in finished]
        write_text_atomic(self.path, "".join(json.dumps(asdict(row)) + "\n" for row in self.rows))
