"""From a config to a run: everything that `train.train` works with, and how the run ended."""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from sspo_cli.config import VALIDATION, RunOptions, TaskOptions, differences, may_change
from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.interruption import Interruption
from sspo_cli.objectives import build_objective
from sspo_cli.policy.checkpoint import load_state, set_damaged_aside
from sspo_cli.policy.cold_start import cold_start, demonstrations_of
from sspo_cli.policy.kernels import explained_compiler_errors
from sspo_cli.policy.model import load_policy, resolve_device
from sspo_cli.policy.optimizer import adamw, adamw_8bit
from sspo_cli.preflight import check_lengths, preflight
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout import open_engine
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.prompts import render
from sspo_cli.tasks.validation import hold_out, without
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.tracker import Tracker, open_tracker
from sspo_cli.train import Run, RunState, train
from sspo_cli.types import Problem, Prompt

COLD_STARTS = "cold-starts"  # beside the runs, shared by them
RENDERED_AT_A_TIME = 256  # problems between two signs of progress


def start_run(options: RunOptions, path: Path, command: Sequence[str]) -> None:
    """A new run in `path`. Raises UserError where that exists, or where the run cannot go on; Interrupted when stopped."""
    build_objective(
        **options.objective.model_dump()
    )  # a gate that breaks the conditions is told before a folder is made
    with RunFolder.create(path, options, command) as folder:
        _run(folder, options)


def resume_run(path: Path, given: RunOptions | None) -> None:
    """Goes on from the last whole checkpoint, or from the start where there is none.

    Raises UserError where there is no such run, where it is finished, or where `given` differs from what it was started
    with in what is computed, see `may_change`.
    """
    with RunFolder.resume(path) as folder:
        options = given or folder.config
        changes = differences(folder.config, options)
        if fixed := [line for key, line in changes.items() if not may_change(key)]:
            raise UserError(
                f"run {path} was started with other options ({'; '.join(fixed)}); resume it without any, or with those that it "
                "was started with, or start a new run"
            )
        if folder.status.get("state") == "finished":
            raise UserError(f"run {path} is finished; start a new one, or measure it with `sspo eval {path}`")
        _run(folder, options)


def free_name(runs_dir: Path, options: RunOptions) -> str:
    """`sspo-atanlog-seed0`, or with a number behind where that exists."""
    words = [options.objective.method, options.objective.gate, f"seed{options.seed}"]
    name = "-".join(str(word).replace(":", ".") for word in words)
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if not (runs_dir / candidate).exists())


def _run(folder: RunFolder, options: RunOptions) -> None:
    with ExitStack() as stack:
        tracker = stack.enter_context(open_tracker(folder))
        interruption = stack.enter_context(Interruption())
        checker = stack.enter_context(AnswerChecker(timeout=options.answer_timeout))
        try:
            with explained_compiler_errors():
                train(prepare(folder, options, tracker, interruption, checker))
        except torch.OutOfMemoryError:
            raise UserError(
                f"the GPU's memory is full; repeat the command with --run {folder.path.name} --resume and a lower "
                "learning.token_budget or rollout.max_rows, or model.gradient_checkpointing=true; or start anew with "
                "model.lora={rank: 16}, or with model.weights=bfloat16 and optimizer.eight_bit=true"
            ) from None
        tracker.note(
            f"run folder: {folder.path}; `sspo report {folder.path}` draws it, `sspo eval {folder.path}` measures it"
        )


def prepare(
    folder: RunFolder, options: RunOptions, tracker: Tracker, interruption: Interruption, checker: AnswerChecker
) -> Run:
    """Loads or resumes everything; runs the cold start where it is not done yet.

    `options` are the folder's, or a resumed run's that differ from them in how it is computed: the folder keeps them.
    """
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    checkpoint, damaged = set_damaged_aside(folder.checkpoints)
    for path in damaged:
        tracker.note(f"checkpoint {path.name.removeprefix('damaged-')} is damaged; it is set aside as {path}")
    policy = load_policy(options.model, device, checkpoint)
    if options.optimizer.eight_bit:
        adamw_8bit()  # told at once where it is missing, and needed to read its state

    saved = load_state(checkpoint) if checkpoint else None
    state = RunState.from_state_dict(saved["run"]) if saved else RunState()
    folder.truncate(state.step)
    tracker.start(options.steps, state.step)
    if checkpoint:
        tracker.note(f"resuming from {checkpoint}")

    def rendered(problems_by_task: Sequence[Sequence[Problem]]) -> list[list[Prompt]]:
        prompts: list[list[Prompt]] = [[] for _ in problems_by_task]
        with tracker.stage("rendering prompts", sum(map(len, problems_by_task))):
            for of_task, problems in zip(prompts, problems_by_task, strict=True):
                for start in range(0, len(problems), RENDERED_AT_A_TIME):
                    part = problems[start : start + RENDERED_AT_A_TIME]
                    of_task += [render(problem, options.prompt, policy.tokenizer) for problem in part]
                    tracker.advance(len(part))
        return prompts

    weights, evaluation = [task.weight for task in options.tasks], options.evaluation
    problems, held_out = hold_out(_problems_of(options.tasks), weights, evaluation.validation)
    prompts = rendered(problems)
    needed = [check_lengths(itertools.chain(*prompts), options.rollout.max_new_tokens, policy)]
    places = [(task.label, task.split) for task in evaluation.benchmarks]
    to_measure = _problems_of(evaluation.benchmarks)
    if held_out:
        places, to_measure = [(VALIDATION, VALIDATION), *places], [held_out, *to_measure]
    benchmarks = [Benchmark(*place, of_one) for place, of_one in zip(places, rendered(to_measure), strict=True)]
    needed += [check_lengths(each.prompts, Conditions.of(options).max_new_tokens, policy) for each in benchmarks]
    preflight(policy, prompts[0][0], checker, tracker.note)
    engine = open_engine(options.rollout, policy, named=options.model.name is not None)  # tells early what it cannot do
    engine.check_capacity(max(needed))
    cold = checkpoint is None and options.cold_start.steps > 0
    if cold:
        engine.sync(policy)  # whether weights arrive is told before the cold start, not after it
    engine.sleep()
    tracker.note(f"sampler: {engine.name}")
    if changes := list(differences(folder.config, options).values()):
        tracker.note(f"from here on: {', '.join(changes)}")
        folder.change(options, checkpoint.name if checkpoint else None, changes)

    if cold:
        worked = [without(problems, held_out) for problems in _problems_of(options.cold_start.tasks)]
        teachers = rendered(worked) if worked else prompts
        demonstrations = demonstrations_of(list(itertools.chain(*teachers)), policy)
        with tracker.stage("cold start", options.cold_start.steps):
            cache = folder.path.parent / COLD_STARTS
            policy, place = cold_start(
                policy, demonstrations, options, cache, interruption, tracker.advance, tracker.note
            )
        tracker.note(f"cold start: {place}")

    optimizer = adamw(
        policy.parameters, options.optimizer.betas, options.optimizer.weight_decay, options.optimizer.eight_bit
    )
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


def _problems_of(tasks: Sequence[TaskOptions]) -> list[list[Problem]]:
    return [load_problems(task.name, path=task.path, split=task.split, limit=task.limit) for task in tasks]
