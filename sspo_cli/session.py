"""From a config to a run: everything that `train.train` works with, and how the run ended."""

import itertools
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast, get_args

import torch
from rich.console import Console
from rich.progress import Progress

from sspo_cli.config import RunOptions, TaskName, TaskOptions
from sspo_cli.config_files import differences
from sspo_cli.errors import UserError
from sspo_cli.evaluate import evaluate, evaluation_tokens, load_benchmark, record, summarize
from sspo_cli.interruption import Interruption
from sspo_cli.objectives import build_objective
from sspo_cli.policy.checkpoint import NAME, is_whole, latest_whole, load_state, set_damaged_aside
from sspo_cli.policy.cold_start import cold_start, demonstrations_of
from sspo_cli.policy.model import Policy, load_policy, resolve_device
from sspo_cli.policy.optimizer import adamw
from sspo_cli.preflight import preflight
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout import open_engine
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.prompts import render
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.tracker import Tracker, open_tracker
from sspo_cli.train import Run, RunState, train
from sspo_cli.types import Problem, Prompt

COLD_STARTS = "cold-starts"  # beside the runs, shared by them


def start_run(options: RunOptions, path: Path, command: Sequence[str]) -> None:
    """A new run in `path`. Raises UserError where that exists, or where the run cannot go on; Interrupted when stopped."""
    build_objective(
        **options.objective.model_dump()
    )  # a gate that breaks the conditions is told before a folder is made
    with RunFolder.create(path, options, command) as folder:
        _run(folder)


def resume_run(path: Path, given: RunOptions | None) -> None:
    """Goes on from the last whole checkpoint, or from the start where there is none.

    Raises UserError where there is no such run, where it is finished, or where `given` differs from what it was started
    with.
    """
    with RunFolder.resume(path) as folder:
        if given is not None and (changed := differences(folder.config, given)):
            raise UserError(
                f"run {path} was started with other options ({'; '.join(changed)}); "
                "resume it without -c and -s, or start a new run"
            )
        if folder.status.get("state") == "finished":
            raise UserError(f"run {path} is finished; start a new one, or measure it with `sspo eval {path}`")
        _run(folder)


def free_name(runs_dir: Path, options: RunOptions) -> str:
    """`sspo-atanlog-seed0`, or with a number behind where that exists."""
    words = [options.objective.method, options.objective.gate, f"seed{options.seed}"]
    name = "-".join(str(word).replace(":", ".") for word in words)
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if not (runs_dir / candidate).exists())


def _run(folder: RunFolder) -> None:
    options = folder.config
    with ExitStack() as stack:
        tracker = stack.enter_context(open_tracker(folder))
        interruption = stack.enter_context(Interruption())
        checker = stack.enter_context(AnswerChecker(timeout=options.answer_timeout))
        try:
            train(prepare(folder, tracker, interruption, checker))
        except torch.OutOfMemoryError:
            raise UserError(
                "the GPU's memory is full; lower learning.token_budget or rollout.max_rows, or set "
                "model.gradient_checkpointing=true or model.lora={rank: 16}, and --resume"
            ) from None
        tracker.note(
            f"run folder: {folder.path}; `sspo report {folder.path}` draws it, `sspo eval {folder.path}` measures it"
        )


def prepare(folder: RunFolder, tracker: Tracker, interruption: Interruption, checker: AnswerChecker) -> Run:
    """Loads or resumes everything; runs the cold start where it is not done yet."""
    options = folder.config
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    checkpoint, damaged = set_damaged_aside(folder.checkpoints)
    for path in damaged:
        tracker.note(f"checkpoint {path.name.removeprefix('damaged-')} is damaged; it is set aside as {path}")
    policy = load_policy(options.model, device, checkpoint)

    saved = load_state(checkpoint) if checkpoint else None
    state = RunState.from_state_dict(saved["run"]) if saved else RunState()
    folder.truncate(state.step)
    tracker.start(options.steps, state.step)
    if checkpoint:
        tracker.note(f"resuming from {checkpoint}")

    def rendered(problem: Problem) -> Prompt:
        return render(problem, options.prompt, policy.tokenizer)

    def prompts_of(tasks: Sequence[TaskOptions]) -> list[list[Prompt]]:
        problems = (load_problems(t.name, path=t.path, split=t.split, limit=t.limit) for t in tasks)
        return [list(map(rendered, of_task)) for of_task in problems]

    prompts = prompts_of(options.tasks)
    check_lengths(itertools.chain(*prompts), options.rollout.max_new_tokens, policy)
    benchmarks = [load_benchmark(task, None, rendered) for task in options.evaluation.benchmarks]
    for benchmark in benchmarks:
        check_lengths(benchmark.prompts, evaluation_tokens(options), policy)
    preflight(policy, prompts[0][0], checker, tracker.note)
    engine = open_engine(options.rollout, policy, named=options.model.name is not None)  # tells early what it cannot do
    engine.sleep()
    tracker.note(f"sampler: {engine.name}")

    if checkpoint is None and options.cold_start.steps:
        teachers = prompts_of(options.cold_start.tasks) or prompts
        demonstrations = demonstrations_of(list(itertools.chain(*teachers)), policy)
        with tracker.stage("cold start", options.cold_start.steps):
            policy, place = cold_start(
                policy, demonstrations, options, folder.path.parent / COLD_STARTS, interruption, tracker.advance
            )
        tracker.note(f"cold start: {place}")

    optimizer = adamw(policy.parameters, options.optimizer.betas, options.optimizer.weight_decay)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
    return Run(
        options=options,
        folder=folder,
        policy=policy,
        objective=build_objective(**options.objective.model_dump()),
        optimizer=optimizer,
        engine=engine,
        prompts=prompts,
        benchmarks=benchmarks,
        checker=checker,
        tracker=tracker,
        interruption=interruption,
        state=state,
    )


def check_lengths(prompts: Iterable[Prompt], max_new_tokens: int, policy: Policy) -> None:
    """Raises UserError for a prompt that leaves too little of the model's context for its completion."""
    for prompt in prompts:
        needed = len(prompt.token_ids) + max_new_tokens
        if policy.context is not None and needed > policy.context:
            raise UserError(
                f"problem {prompt.problem.id} of {prompt.problem.task} needs {needed} tokens, {len(prompt.token_ids)} for its "
                f"prompt and {max_new_tokens} for the completion, but the model's context is {policy.context}; "
                "lower max_new_tokens or leave the problem out"
            )


def evaluate_target(
    target: str, benchmarks: Sequence[str], limit: int | None, given: RunOptions | None, runs_dir: Path
) -> None:
    """Measures a run (its newest checkpoint), one of its checkpoints, or any Hugging Face model, and prints a line for each
    benchmark. No benchmark named: those of the run's options. What is measured with a `limit` is printed, not recorded.

    Raises UserError for a target or a benchmark that cannot be found, and for options `given` for a run, which has its own.
    """
    run, checkpoint = _find_run(target, runs_dir)
    if run and given:
        raise UserError(f"run {run.path} is measured with its own options; leave out -c and -s")
    if run:
        options, folder = run.config, run.eval
    else:
        given = given or RunOptions()
        options = given.model_copy(update={"model": given.model.model_copy(update={"name": target})})
        folder = runs_dir / f"model-{target.strip('/').replace('/', '-')}" / "eval"
    torch.set_num_threads(options.threads)
    try:
        policy = load_policy(options.model, resolve_device(options.device), checkpoint)
    except UserError as error:
        raise error if run else UserError(f"there is no run {target} in {runs_dir}, and {error}") from None
    engine = open_engine(options.rollout, policy, named=True)
    engine.sync(policy)
    step = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
    max_new_tokens = evaluation_tokens(options)
    settings = {"max_new_tokens": max_new_tokens, "prompt": options.prompt, "checkpoint": str(checkpoint or target)}
    console = Console(soft_wrap=True, highlight=False)
    tasks = [_benchmark_options(name, options) for name in benchmarks] or options.evaluation.benchmarks
    if len({task.label for task in tasks}) < len(tasks):
        raise UserError("two of the benchmarks have the same name; their results would overwrite each other")
    with AnswerChecker(timeout=options.answer_timeout) as checker, Progress(console=console, transient=True) as bars:
        for task in tasks:
            benchmark = load_benchmark(task, limit, lambda problem: render(problem, options.prompt, policy.tokenizer))
            check_lengths(benchmark.prompts, max_new_tokens, policy)
            bar = bars.add_task(benchmark.name, total=len(benchmark.prompts))
            groups = evaluate(engine, benchmark, checker, max_new_tokens, partial(bars.advance, bar))
            if limit is None:
                summary = record(folder, groups, benchmark, step, settings)
            else:
                summary = summarize(groups, benchmark, settings)
            console.print(
                f"{benchmark.name} ({benchmark.split}): Pass@1 {summary['pass_at_1']:.1%} "
                f"[{summary['low']:.1%}, {summary['high']:.1%}] of {summary['n']} problems, greedy, "
                f"at most {max_new_tokens} tokens, prompt {options.prompt}, {summary['checkpoint']}"
            )
            if summary["truncated"] > summary["n"] / 2:
                console.print(f"most completions were cut at {max_new_tokens} tokens; raise rollout.max_new_tokens")
    if limit is None:
        console.print(f"every problem with its completion: {folder}")


def _find_run(target: str, runs_dir: Path) -> tuple[RunFolder | None, Path | None]:
    """The run and the checkpoint that a target names: a run's name or folder, or a checkpoint's folder. None: a model."""
    for path in (Path(target), runs_dir / target):
        if (path / "checkpoints").is_dir():
            run = RunFolder.open(path)
            checkpoint, _ = latest_whole(run.checkpoints)
            if checkpoint is None:
                raise UserError(f"run {path} has no whole checkpoint to measure")
            return run, checkpoint
        of_a_run = path.parent.name == "checkpoints" and (path.parent.parent / "config.json").is_file()
        if of_a_run and path.is_dir() and NAME.fullmatch(path.name):
            if not is_whole(path):
                raise UserError(f"checkpoint {path} is damaged")
            return RunFolder.open(path.parent.parent), path
    return None, None


def _benchmark_options(name: str, options: RunOptions) -> TaskOptions:
    """A benchmark of the run's options by its name, another one as published, or a local file of questions and answers."""
    for benchmark in options.evaluation.benchmarks:
        if benchmark.label == name:
            return benchmark
    if name in get_args(TaskName):
        return TaskOptions(name=cast(TaskName, name), split="test")
    if Path(name).exists():
        file = TaskOptions(name="file", path=name, split="test")
        if file.label in (*get_args(TaskName), *(benchmark.label for benchmark in options.evaluation.benchmarks)):
            raise UserError(
                f"the results of {name} would be filed under {file.label}, another benchmark's name; rename the file"
            )
        return file
    raise UserError(f"unknown benchmark {name}; use {', '.join(get_args(TaskName))}, or an existing file")
