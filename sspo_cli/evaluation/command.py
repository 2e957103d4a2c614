"""`sspo eval`: measures targets (runs, checkpoints and models) on benchmarks, one target at a time."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sspo_cli import ranks
from sspo_cli.config import ENVIRONMENTS, BenchmarkOptions, EpisodeOptions
from sspo_cli.environments.environment import Environment
from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.comparison import RECORDED, EvalResult, print_comparison
from sspo_cli.evaluation.identity import SAME_FILES, Identity, hash_of
from sspo_cli.evaluation.ignored import refuse_ignored_in_eval
from sspo_cli.evaluation.partial import partial_path
from sspo_cli.evaluation.reuse import find_recorded
from sspo_cli.evaluation.sampling import evaluate
from sspo_cli.evaluation.summary import record, summarize
from sspo_cli.evaluation.targets import (
    MODEL,
    Target,
    check_limits,
    conditions_of,
    find_targets,
    sampled_by,
    tasks_of,
    without_limit,
)
from sspo_cli.interruption import Interrupted
from sspo_cli.model_check import Limit, check_model, check_reach, check_structure
from sspo_cli.policy.model import Policy, fingerprint, load_policy, resolve_device
from sspo_cli.policy.pretrained import load_config, load_tokenizer
from sspo_cli.preflight import check_lengths
from sspo_cli.redaction import redacted
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout import engine_kind, open_engine, samples_by_torch
from sspo_cli.rollout.engine import Engine
from sspo_cli.rollout.episodes import Stage, open_environments
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.prompts import Template
from sspo_cli.tracking.dead import evaluation_signs
from sspo_cli.tracking.files import ABANDONED, explain_os_errors, remove_leftovers, write_json_atomic
from sspo_cli.tracking.live import SPEED_PERIOD
from sspo_cli.tracking.pulse import Pulse
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.text import duration, pass_at_1
from sspo_cli.types import Problem


def measure(
    names: Sequence[str],
    benchmarks: Sequence[str],
    changes: Mapping[str, Any],
    checkpoint: str | None,
    limit: int | None,
    given: Mapping[str, Any] | None,
    runs_dir: Path,
    engine: Literal["auto", "torch", "vllm"] | None = None,
    again: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Measure each target on each benchmark, and print Pass@1 and the differences from the first target.

    names       runs, checkpoints and models outside runs; a run is measured with its own options
    benchmarks  names of benchmarks; if empty, each target is measured on the benchmarks in its options
    changes     conditions that override the targets' options
    checkpoint  checkpoint of each run: last, best or a step
    limit       most problems of each benchmark; if given, results are printed but not recorded
    given       options of models outside runs; if empty, they have the options of the first run
    engine      sampler; overrides the targets' options
    again       sample even if a score of the same weights under the same conditions is recorded; by default, it is reused
    overrides   texts of `-s`, which are also in `given`; one without an effect is refused

    If the command is killed or stopped, repeating it does not repeat finished work, unless `limit` is given.

    Raises UserError if a target cannot be found or measured, or if the token limits of a model outside a run and the first
    target differ. Most errors are raised before a model is loaded. Raises Interrupted if the user stops the command.
    """
    targets = ranks.on_first(lambda: find_targets(names, checkpoint, given, runs_dir))
    if engine:
        targets = [sampled_by(target, engine) for target in targets]
    for number, target in enumerate(targets):
        for earlier in targets[:number]:
            if earlier.model == target.model:
                raise UserError(f"{earlier.name} and {target.name} are the same model; name it only once")
            if (earlier.folder, earlier.step) == (target.folder, target.step):
                raise UserError(
                    f"the results of {earlier.name} and {target.name} would both be stored in {target.folder}; measure one of "
                    "them with another --runs-dir"
                )
    if given and all(target.checkpoint for target in targets):
        raise UserError(f"run {targets[0].folder} is measured with its own options; leave out -c and -s")
    _check_names(targets)
    plans = [(target, conditions_of(target, changes), tasks_of(target, benchmarks)) for target in targets]
    refuse_ignored_in_eval(plans, overrides, benchmarks, changes, engine)
    if "max_new_tokens" in changes:
        plans = [(target, conditions, [without_limit(task) for task in tasks]) for target, conditions, tasks in plans]
    unequal_limits = check_limits(plans)

    terminal = Console(stderr=True, highlight=False, markup=False, emoji=False, quiet=not ranks.is_first())
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    results: list[EvalResult] = []
    try:
        with (
            ExitStack() as stack,
            Progress(
                *columns,
                console=terminal,
                transient=True,
                disable=not terminal.is_terminal,
                speed_estimate_period=SPEED_PERIOD,
            ) as bars,
        ):
            if not terminal.is_terminal:
                stack.enter_context(Pulse(partial(terminal.print, soft_wrap=True), partial(_describe, bars)))
            judges = [stack.enter_context(_open_judge(target, tasks)) for target, _, tasks in plans]
            all_tasks = dict.fromkeys(task for _, _, tasks in plans for task in tasks)
            problems = {task: _read(task, limit, bars) for task in all_tasks}
            for (target, conditions, tasks), judge in zip(plans, judges, strict=True):
                of_target = {task: problems[task] for task in tasks}
                results += _measure_target(target, conditions, of_target, judge, not limit, again, bars)
    except torch.OutOfMemoryError:
        raise UserError("the GPU is out of memory; lower rollout.max_rows (for a run, in its config.json)") from None
    except KeyboardInterrupt:
        kept = "nothing is recorded" if limit else "finished work is saved; the same command resumes it"
        raise Interrupted(f"stopped; {kept}") from None
    if not ranks.is_first():
        return
    print_comparison(results)
    for sentence in unequal_limits:
        print(sentence)
    if any(result.recorded for result in results):
        print("recorded: measured earlier with the same weights under the same conditions; --again measures it again")
    if not limit:
        print(
            "every problem with its completions:",
            ", ".join(dict.fromkeys(str(target.folder / "eval") for target in targets)),
        )
    # Removed only now, so that an interrupted command with --again can be repeated without sampling these problems again.
    for result in results:
        if result.partial:
            result.partial.unlink(missing_ok=True)


def _describe(bars: Progress) -> str:
    """Format the progress of the newest bar, for output without a terminal."""
    if not bars.tasks:
        return ""
    task = bars.tasks[-1]
    left = "-" if task.time_remaining is None else duration(task.time_remaining)
    return f"{task.description}: {task.completed:.0f}/{task.total or 0:.0f}, {left} left"


@dataclass(frozen=True)
class _Judge:
    """The answer checker and the environments. The processes of both start before gold answers are loaded."""

    checker: AnswerChecker
    environments: Mapping[str, Environment]


@contextmanager
def _open_judge(target: Target, tasks: Sequence[BenchmarkOptions]) -> Iterator[_Judge]:
    names = {ENVIRONMENTS[task.name] for task in tasks if task.name in ENVIRONMENTS}
    episode = target.options.episode or EpisodeOptions()
    with (
        AnswerChecker(timeout=target.options.answer_timeout) as checker,
        open_environments(names, episode, checker) as environments,
    ):
        yield _Judge(checker, environments)


@dataclass(frozen=True)
class _Measurement:
    """A benchmark to measure. `recorded` is the summary and the answers of an earlier measurement, or None."""

    benchmark: Benchmark
    conditions: Conditions
    identity: Identity
    recorded: tuple[dict[str, Any], list[dict[str, Any]]] | None


def _check_names(targets: Sequence[Target]) -> None:
    """Load the config of each model outside a run, so that a mistyped name is reported before any target is measured."""
    for target in targets:
        if target.checkpoint is None:
            try:
                load_tokenizer(target.name, target.options.model.revision)
                load_config(target.name, target.options.model.revision)
            except UserError as error:
                raise _named(target, error) from None


def _read(task: BenchmarkOptions, limit: int | None, bars: Progress) -> list[Problem]:
    bar = bars.add_task(f"reading {task.label}", total=None)
    limit = limit or task.limit
    problems = load_problems(task.name, path=task.path, split=task.split, limit=limit, layout=task.layout)
    bars.remove_task(bar)
    return problems


def _measure_target(
    target: Target,
    conditions: Conditions,
    problems: Mapping[BenchmarkOptions, Sequence[Problem]],
    judge: _Judge,
    to_record: bool,
    again: bool,
    bars: Progress,
) -> list[EvalResult]:
    """Measure a target on each benchmark."""
    torch.set_num_threads(target.options.threads)
    rollout = target.options.rollout
    limit = _check_structure(target, samples_by_torch(rollout, resolve_device(target.options.device)), bars)
    policy = _load(target)
    for note in policy.notes:
        bars.console.print(f"{target.name}: {note}", soft_wrap=True)
    stage = Stage.of(judge.environments, target.options.episode or EpisodeOptions(), policy)
    template = target.options.template
    benchmarks = [_render(task, of_task, template, policy, stage, bars) for task, of_task in problems.items()]
    if target.checkpoint:
        benchmarks = [benchmark.measured_on(RunFolder(target.folder)) for benchmark in benchmarks]
    weights, kind = fingerprint(policy), engine_kind(rollout, policy, named=True)

    def plan(benchmark: Benchmark) -> _Measurement:
        under = conditions.on(benchmark)
        identity = Identity.of(benchmark.prompts, template, under.sampler(kind))
        if again or not to_record:
            return _Measurement(benchmark, under, identity, None)
        recorded = find_recorded(target.folder / "eval", benchmark, under, identity, target.step, weights)
        return _Measurement(benchmark, under, identity, recorded)

    measurements = [plan(benchmark) for benchmark in benchmarks]
    of_benchmarks = {f"hash of {each.benchmark.name}": each.identity.digest for each in measurements}
    config = {"hash of config.json": hash_of(policy.model.config.to_json_string())}
    ranks.require_agreement("another model or other data", config | of_benchmarks, SAME_FILES)
    to_sample = [measurement for measurement in measurements if not measurement.recorded]
    engine = _open_engine(target, policy, stage, to_sample, limit, bars) if to_sample else None
    if engine and to_record and not target.checkpoint:
        ranks.on_first(lambda: _note_model(target))
    results = []
    for measurement in measurements:
        name, path = measurement.benchmark.name, None
        if measurement.recorded:
            summary, rows = measurement.recorded
        else:
            assert engine
            summary, rows, path = _sample(target, measurement, engine, judge, stage, weights, to_record, bars)
        mark = RECORDED if measurement.recorded else ""
        common = {"samples": summary["samples"], "temperature": summary["temperature"]}
        parts = {f"{name}/{part}": {**common, **of_part} for part, of_part in summary.get("parts", {}).items()}
        for label, measured in {name: summary, **parts}.items():
            bars.console.print(f"{target.name}: {label} Pass@1 {pass_at_1(measured)}{mark}", soft_wrap=True)
        for sign in evaluation_signs(rows, target.options.silent_template):
            bars.console.print(f"{target.name}: {name}: {sign}", soft_wrap=True)
        if path and not again:  # the score is recorded, so that a repeated command reuses it
            if ranks.is_first():
                path.unlink(missing_ok=True)
            path = None
        results.append(
            EvalResult(target.name, target.options.model.name, summary, rows, path, bool(measurement.recorded))
        )
    return results


def _open_engine(
    target: Target,
    policy: Policy,
    stage: Stage,
    measurements: Sequence[_Measurement],
    limit: Limit | None,
    bars: Progress,
) -> Engine:
    """Open the engine with the policy's weights. Raises UserError if it cannot sample these measurements correctly."""
    rollout = target.options.rollout
    needed = max(
        check_lengths(measurement.benchmark.prompts, measurement.conditions.max_new_tokens, policy, stage)
        for measurement in measurements
    )
    engine = open_engine(rollout, policy, named=True, learns=False)
    engine.check_capacity(needed)
    by_torch = isinstance(engine, TorchEngine)
    if by_torch and not samples_by_torch(rollout, policy.device):  # `auto` chose torch only now
        limit = _check_structure(target, True, bars)
    check_reach(limit, needed, target.name)
    check_model(policy, samples=by_torch)
    engine.sync(policy)
    return engine


def _sample(
    target: Target,
    measurement: _Measurement,
    engine: Engine,
    judge: _Judge,
    stage: Stage,
    weights: str,
    to_record: bool,
    bars: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]], Path | None]:
    """Measure a target on a benchmark.

    Returns the summary, the answers, and the file of finished problems. The file is None if results are not recorded.
    """
    benchmark, under, identity = measurement.benchmark, measurement.conditions, measurement.identity
    folder, checkpoint = target.folder / "eval", target.checkpoint.name if target.checkpoint else target.name
    path = partial_path(folder, benchmark, under, identity, f"{weights} by {engine.name}") if to_record else None
    bar = bars.add_task(f"{target.name}: {benchmark.name}", total=len(benchmark.prompts))
    advance = partial(bars.advance, bar)
    rows = evaluate(engine, benchmark, judge.checker, under, identity, advance, path, stage)
    bars.remove_task(bar)
    if to_record:
        summary = record(folder, rows, benchmark, under, identity, target.step, checkpoint, weights)
    else:
        summary = {**summarize(rows, benchmark, under, identity), "checkpoint": checkpoint}
    return summary, rows, path


def _note_model(target: Target) -> None:
    content = {"model": target.model, "options": target.options.model_dump(mode="json")}
    with explain_os_errors("create", target.folder):
        target.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.folder, older_than=ABANDONED)
    write_json_atomic(target.folder / MODEL, redacted(content))


def _check_structure(target: Target, samples: bool, bars: Progress) -> Limit | None:
    try:
        return check_structure(target.options.model, bars.console.print, samples=samples, folder=target.checkpoint)
    except UserError as error:
        raise _named(target, error) from None


def _load(target: Target) -> Policy:
    """Load the policy of a target. Raises UserError if this fails."""
    gc.collect()  # frees the previous model
    torch.cuda.empty_cache()
    options = target.options
    model = options.model.model_copy(update={"kernels": "torch"})  # the only ones for all machines
    try:
        return load_policy(model, resolve_device(options.device), target.checkpoint, options.chat.template)
    except UserError as error:
        raise _named(target, error) from None


def _named(target: Target, error: UserError) -> UserError:
    """Add to an error about a model outside a run that there is no run with this name, which may be mistyped."""
    if target.checkpoint:
        return error
    return UserError(f"there is no run {target.name} in {target.folder.parent}, and {error}")


def _render(
    task: BenchmarkOptions,
    problems: Sequence[Problem],
    template: Template,
    policy: Policy,
    stage: Stage,
    bars: Progress,
) -> Benchmark:
    with_progress = bars.track(problems, description=f"rendering {task.label}")
    prompts = [stage.render(problem, template, policy.tokenizer) for problem in with_progress]
    return Benchmark(task.label, task.split, prompts, task.max_new_tokens, task.path)
