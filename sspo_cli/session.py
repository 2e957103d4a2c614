"""From a config to a run: everything that `train.train` works with, and how the run ended."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import cast, get_args

import torch
from rich.console import Console
from rich.progress import Progress

from sspo_cli.config import RunOptions, TaskName, TaskOptions, differences
from sspo_cli.errors import UserError
from sspo_cli.evaluate import evaluate, load_benchmark, record
from sspo_cli.interruption import Interruption
from sspo_cli.objectives import build_objective
from sspo_cli.policy.checkpoint import is_whole, latest_whole, load_state
from sspo_cli.policy.cold_start import cold_start, demonstrations_of
from sspo_cli.policy.model import Policy, load_policy, resolve_device
from sspo_cli.policy.optimizer import adamw
from sspo_cli.preflight import preflight
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout.torch_engine import TorchEngine
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
        train(prepare(folder, tracker, interruption, checker))
        tracker.note(
            f"run folder: {folder.path}; `sspo report {folder.path}` draws it, `sspo eval {folder.path}` measures it"
        )


def prepare(folder: RunFolder, tracker: Tracker, interruption: Interruption, checker: AnswerChecker) -> Run:
    """Loads or resumes everything; runs the cold start where it is not done yet."""
    options = folder.config
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    checkpoint, damaged = latest_whole(folder.checkpoints)
    for path in damaged:
        tracker.note(f"checkpoint {path} is damaged; it is passed over")
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
    benchmarks = [load_benchmark(task, None, rendered) for task in options.evaluation.benchmarks]
    for prompt in itertools.chain(*prompts, *(benchmark.prompts for benchmark in benchmarks)):
        _check_length(prompt, options.rollout.max_new_tokens, policy)
    preflight(policy, prompts[0][0], checker, tracker.note)

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
        engine=TorchEngine(policy, options.rollout.max_rows),
        prompts=prompts,
        benchmarks=benchmarks,
        checker=checker,
        tracker=tracker,
        interruption=interruption,
        state=state,
    )


def _check_length(prompt: Prompt, max_new_tokens: int, policy: Policy) -> None:
    longest = len(prompt.token_ids) + max_new_tokens
    if policy.context is not None and longest > policy.context:
        raise UserError(
            f"problem {prompt.problem.id} of {prompt.problem.task} needs {longest} tokens, {len(prompt.token_ids)} for its "
            f"prompt and rollout.max_new_tokens = {max_new_tokens}, but the model's context is {policy.context}; "
            "lower rollout.max_new_tokens or leave the problem out"
        )


def evaluate_target(
    target: str, benchmarks: Sequence[str], limit: int | None, given: RunOptions, runs_dir: Path
) -> None:
    """Measures a run (its newest checkpoint), one of its checkpoints, or any Hugging Face model, and prints a line for each
    benchmark. No benchmark named: those of the run's options.

    Raises UserError for a target or a benchmark that cannot be found.
    """
    run, checkpoint = _find_run(target, runs_dir)
    if run:
        options, folder = run.config, run.eval
    else:
        model = given.model.model_copy(update={"name": target})
        options, folder = given.model_copy(update={"model": model}), runs_dir / f"model-{Path(target).name}" / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    policy = load_policy(options.model, resolve_device(options.device), checkpoint)
    engine = TorchEngine(policy, options.rollout.max_rows)
    step = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
    max_new_tokens = options.evaluation.max_new_tokens or options.rollout.max_new_tokens
    settings = {"max_new_tokens": max_new_tokens, "prompt": options.prompt, "checkpoint": str(checkpoint or target)}
    console = Console()
    tasks = [_benchmark_options(name) for name in benchmarks] or options.evaluation.benchmarks
    with AnswerChecker(timeout=options.answer_timeout) as checker, Progress(console=console, transient=True) as bars:
        for task in tasks:
            benchmark = load_benchmark(task, limit, lambda problem: render(problem, options.prompt, policy.tokenizer))
            bar = bars.add_task(benchmark.name, total=len(benchmark.prompts))
            groups = evaluate(engine, benchmark, checker, max_new_tokens, partial(bars.advance, bar))
            summary = record(folder, groups, benchmark, step, settings)
            console.print(
                f"{benchmark.name} ({benchmark.split}): Pass@1 {summary['pass_at_1']:.1%} "
                f"[{summary['low']:.1%}, {summary['high']:.1%}] of {summary['n']} problems, greedy, "
                f"at most {max_new_tokens} tokens, {summary['checkpoint']}",
                highlight=False,
                soft_wrap=True,
            )
    console.print(f"every problem with its completion: {folder}", highlight=False, soft_wrap=True)


def _find_run(target: str, runs_dir: Path) -> tuple[RunFolder | None, Path | None]:
    """The run and the checkpoint that a target names: a run's name or folder, or a checkpoint's folder. None: a model."""
    for path in (Path(target), runs_dir / target):
        if (path / "checkpoints").is_dir():
            run = RunFolder.open(path)
            checkpoint, _ = latest_whole(run.checkpoints)
            if checkpoint is None:
                raise UserError(f"run {path} has no whole checkpoint to measure")
            return run, checkpoint
        if path.parent.name == "checkpoints" and path.is_dir():
            if not is_whole(path):
                raise UserError(f"checkpoint {path} is damaged")
            return RunFolder.open(path.parent.parent), path
    return None, None


def _benchmark_options(name: str) -> TaskOptions:
    """A benchmark by its name, or a local file of questions and answers."""
    if name in get_args(TaskName):
        return TaskOptions(name=cast(TaskName, name), split="test")
    if Path(name).exists():
        return TaskOptions(name="file", path=name)
    raise UserError(f"unknown benchmark {name}; use {', '.join(get_args(TaskName))}, or an existing file")
