"""Targets of `sspo eval`: runs, checkpoints and models, with their conditions and benchmarks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sspo_cli.config import TASK_NAMES, VALIDATION, BenchmarkOptions, RunOptions, task_from_text, validate
from sspo_cli.errors import UserError, quantity
from sspo_cli.evaluation.benchmark import Conditions
from sspo_cli.named_runs import checkpoint_of, find_run, model_folder, step_of, whole
from sspo_cli.tracking.files import read_json
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import MEASURED_MODEL

MODEL = "model.json"  # file in the results folder of a model outside a run; it identifies the model


@dataclass(frozen=True, slots=True)
class Target:
    """A run, a checkpoint or a model to measure.

    name        name or path from the command line
    folder      folder of the run; for a model outside a run, the folder `model-NAME` next to the runs
    checkpoint  folder of the run's checkpoint; None for a model outside a run
    """

    name: str
    options: RunOptions
    folder: Path
    checkpoint: Path | None

    @property
    def step(self) -> int:
        return step_of(self.checkpoint) if self.checkpoint else 0

    @property
    def model(self) -> str:
        """Absolute path of the weights, or the model's name on the Hugging Face Hub."""
        local = self.checkpoint or Path(self.name)
        return str(local.resolve()) if local.exists() else self.name


def find_targets(
    names: Sequence[str], checkpoint: str | None, given: Mapping[str, Any] | None, runs_dir: Path
) -> list[Target]:
    """Find each target.

    given  options for models outside runs; if empty, these models have the options of the first run among the targets

    Raises UserError in the same cases as `find_target`.
    """
    targets = [find_target(name, checkpoint, given, runs_dir) for name in names]
    if runs := [target for target in targets if target.checkpoint and not given]:
        return [t if t.checkpoint else find_target(t.name, checkpoint, runs[0].options, runs_dir) for t in targets]
    return targets


def find_target(
    name: str, checkpoint: str | None, given: RunOptions | Mapping[str, Any] | None, runs_dir: Path
) -> Target:
    """Find a run by name or folder, a checkpoint by folder, or a Hugging Face model.

    checkpoint  checkpoint of a run: last (default), best or a step
    given       options for a model outside a run, as values before validation or as the options of a run; ignored for runs

    Raises UserError if a run does not have the checkpoint, or if a checkpoint is given for a model outside a run.
    """
    if named := find_run(name, runs_dir):
        if named.checkpoint and checkpoint:
            raise UserError(f"{named.checkpoint} is a checkpoint already; leave out --checkpoint or name the run")
        run = RunFolder.open(named.folder)
        folder = whole(named.checkpoint) if named.checkpoint else checkpoint_of(run, checkpoint or "last")
        return Target(name, run.config, run.path, folder)
    if checkpoint:
        raise UserError(
            f"there is no run {name} in {runs_dir}, and a model has no checkpoints; leave out --checkpoint or correct the name"
        )
    options = _options_of_model(name, given)
    target = Target(name, options, model_folder(name, runs_dir), None)
    path = target.folder / MODEL
    if path.exists() and (earlier := read_json(path, MEASURED_MODEL)["model"]) != target.model:
        raise UserError(f"{target.folder} holds the results of another model, {earlier}; choose another --runs-dir")
    return target


def _options_of_model(name: str, given: RunOptions | Mapping[str, Any] | None) -> RunOptions:
    """Return the options of a model outside a run, with the defaults of a named model.

    The revision in `given` is used only if `given` has no model name or the name of this model.
    """
    if isinstance(given, RunOptions):
        revision = given.model.revision if given.model.name in (None, name) else None
        model = given.model.model_copy(update={"name": name, "revision": revision})
        return given.model_copy(update={"model": model})
    values = dict(given or {})
    model_values = values.get("model", {})
    if not isinstance(model_values, dict):
        return validate(values)  # raises a UserError that explains the problem
    revision = model_values.get("revision") if model_values.get("name") in (None, name) else None
    return validate({**values, "model": {**model_values, "name": name, "revision": revision}})


def sampled_by(target: Target, engine: Literal["auto", "torch", "vllm"]) -> Target:
    """Return the target with the sampler `engine`, for example to measure a run that used vLLM on a machine without vLLM."""
    options, rollout = target.options, target.options.rollout
    vllm = None if engine == "torch" else rollout.vllm
    rollout = rollout.model_copy(update={"engine": engine, "vllm": vllm})
    return replace(target, options=options.model_copy(update={"rollout": rollout}))


def conditions_of(target: Target, changes: Mapping[str, Any]) -> Conditions:
    """Return the target's conditions with `changes` applied.

    Raises UserError if greedy decoding is combined with several samples or with top-k/top-p, or if the temperature is infinite.
    """
    conditions = replace(Conditions.of(target.options), **changes)
    if not math.isfinite(conditions.temperature):
        raise UserError(
            "--temperature inf would sample all tokens with equal probability; give a finite number, such as 0.6"
        )
    if conditions.samples > 1 and not conditions.temperature:
        raise UserError(
            f"{conditions.samples} greedy completions would all be the same; add --temperature, such as 0.6, or --samples 1"
        )
    if not conditions.temperature and (conditions.top_p < 1 or conditions.top_k):
        raise UserError("--top-p and --top-k do not apply to greedy completions; add --temperature, such as 0.6")
    return conditions


def tasks_of(target: Target, benchmarks: Sequence[str]) -> list[BenchmarkOptions]:
    """Return the benchmarks with these names, or if there are none, the benchmarks in the target's options.

    Raises UserError if two benchmarks have the same name, if a name is unknown, or if there are no benchmarks at all.
    """
    options = target.options
    tasks = [_benchmark(name, options) for name in benchmarks] or options.evaluation.benchmarks
    if len({task.label for task in tasks}) < len(tasks):
        raise UserError("two of the benchmarks have the same name; their results would overwrite each other")
    if not tasks:
        raise UserError(f"the options of {target.name} list no benchmarks; add -b BENCHMARK")
    return tasks


def limit_of(task: BenchmarkOptions, conditions: Conditions) -> int:
    """Return the token limit of a completion for a benchmark under these conditions."""
    return task.max_new_tokens or conditions.max_new_tokens


def without_limit(task: BenchmarkOptions) -> BenchmarkOptions:
    """Return the benchmark without its token limit."""
    return task.model_copy(update={"max_new_tokens": None})


def check_limits(plans: Sequence[tuple[Target, Conditions, Sequence[BenchmarkOptions]]]) -> list[str]:
    """Return a warning for each benchmark on which the token limits of a run and the first target differ.

    Raises UserError if one of the two targets is a model outside a run, because a base model and the runs trained from it must
    have the same limit.
    """
    first: dict[str, tuple[Target, int]] = {}
    sentences = []
    for target, conditions, tasks in plans:
        for task in tasks:
            limit = limit_of(task, conditions)
            earlier, earlier_limit = first.setdefault(task.label, (target, limit))
            if limit == earlier_limit:
                continue
            unequal = (
                f"{earlier.name} with at most {quantity(earlier_limit, 'token')} and {target.name} with at most {limit}"
            )
            if not (earlier.checkpoint and target.checkpoint):
                raise UserError(
                    f"{task.label} would be measured for {unequal}, so their scores could not be compared; set the same limit "
                    "for both with --max-new-tokens"
                )
            sentences.append(
                f"{task.label} is measured for {unequal}: their scores are not comparable; set one limit with --max-new-tokens"
            )
    return sentences


def _benchmark(name: str, options: RunOptions) -> BenchmarkOptions:
    """Return the benchmark for a name: a benchmark in the options, a known task, a task as NAME=PATH, or a local file."""
    for benchmark in options.evaluation.benchmarks:
        if benchmark.label == name:
            return benchmark
    known = ", ".join(task for task in TASK_NAMES if task != "file")
    try:
        task = BenchmarkOptions.model_validate(task_from_text(name, "test"))
    except ValueError as error:
        if "has no path" in str(error):
            raise UserError(f"benchmark {error}") from None
        raise UserError(
            f"unknown benchmark {name or repr(name)}; use {known}, one of them as NAME=PATH or NAME=PATH:SPLIT, or an existing "
            "file"
        ) from None
    if task.name == "file" and not task.path:
        raise UserError("benchmark `file` has no path; give the file itself, such as problems.jsonl")
    for benchmark in options.evaluation.benchmarks:
        if (benchmark.name, benchmark.path, benchmark.split) == (task.name, task.path, task.split):
            return benchmark
    labels = [benchmark.label for benchmark in options.evaluation.benchmarks]
    if task.name == "file" and task.label in (*TASK_NAMES, VALIDATION, *labels):
        raise UserError(
            f"the results of {name} would be stored as {task.label}, which is another benchmark's name; rename the file"
        )
    return task
