"""From a config to a run: everything that `train.train` works with, and how the run ended."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sspo_cli import ranks
from sspo_cli.config import (
    ENVIRONMENTS,
    VALIDATION,
    EpisodeOptions,
    EvaluationOptions,
    RunOptions,
    TaskOptions,
    differences,
)
from sspo_cli.environments.environment import Environment
from sspo_cli.errors import UserError, command_line
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import problems_fingerprint
from sspo_cli.forks import check_resumable, checkpoint_to_fork, load_moments, origin_of
from sspo_cli.interruption import Interruption
from sspo_cli.memory import check_memory, device_here
from sspo_cli.model_check import Limit, check_model, check_reach, check_structure
from sspo_cli.objectives import Objective, build_objective
from sspo_cli.policy.checkpoint import load_optimizer, load_state, set_damaged_aside, usable_state
from sspo_cli.policy.cold_start import cold_start, demonstrations_of
from sspo_cli.policy.kernels import explained_compiler_errors
from sspo_cli.policy.model import Policy, load_policy, resolve_device
from sspo_cli.policy.optimizer import adamw, adamw_8bit, describe_new_end
from sspo_cli.preflight import check_lengths, check_rewards, check_sizes
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout import open_engine, samples_by_torch
from sspo_cli.rollout.engine import Engine
from sspo_cli.rollout.episodes import Stage, open_environments
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.run.failures import explained_end, explained_full_memory
from sspo_cli.run.reference import keep_reference, read_reference
from sspo_cli.run.saving import save
from sspo_cli.run.state import Run, RunState
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.contamination import Overlap, decontaminate, find_overlaps, question_keys
from sspo_cli.tasks.validation import hold_out, without
from sspo_cli.tracking.health import health
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.tracker import Tracker, open_tracker
from sspo_cli.train import train
from sspo_cli.types import Problem, Prompt

COLD_STARTS = "cold-starts"  # a folder next to the runs, shared by them
RENDERED_AT_A_TIME = 256  # problems between two signs of progress


def start_run(options: RunOptions, path: Path, command: Sequence[str], keep_going: bool = False) -> None:
    """Make a new run in `path` and trains it, with `keep_going` even if nothing is learned.

    A fork in the options is a resolved one.

    Raises UserError if that exists, or if the run cannot continue; Interrupted when stopped.
    """
    _objective(options)  # refuses a gate before a folder is made
    options.reward.scoring.check()
    with RunFolder.create(path, options, command, origin_of(options)) as folder:
        _run(folder, options, keep_going)


def resume_run(path: Path, options: RunOptions | None, command: Sequence[str], keep_going: bool = False) -> None:
    """Continue a run from its last whole checkpoint, or from the start if there is none.

    `options` differ from those that it was started with only in what `fixed_differences` allows; None: not at all. Raises
    UserError if there is no such run, or if it is finished and its steps are not raised.
    """
    with RunFolder.resume(path) as folder:
        options = options or folder.config
        check_resumable(folder, options)
        _run(folder, options, keep_going, command)


def free_name(runs_dir: Path, options: RunOptions) -> str:
    """Name a run that does not exist: `sspo-atanlog-seed0`, or with a number behind."""
    words = [*options.objective.words, f"seed{options.seed}"]
    name = "-".join(words).replace(":", ".")
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if not (runs_dir / candidate).exists())


def _run(folder: RunFolder, options: RunOptions, keep_going: bool, resumed_by: Sequence[str] | None = None) -> None:
    """Train, and end every sink as the run ends. `resumed_by` is the command of a resumed run."""
    with explained_end(folder), ExitStack() as stack:
        interruption = stack.enter_context(
            Interruption(speaks=ranks.is_first())
        )  # until the status says how the run ended
        tracker = stack.enter_context(open_tracker(folder, options))
        checker = stack.enter_context(AnswerChecker(timeout=options.answer_timeout))
        episode = options.episode or EpisodeOptions()
        opened = open_environments(options.environments, episode, checker)
        environments = stack.enter_context(opened)  # before gold answers are loaded
        lost = ranks.explained_loss("the others cannot continue without it")
        with lost, explained_full_memory(folder, options), explained_compiler_errors():
            run = prepare(folder, options, tracker, interruption, checker, environments, resumed_by)
            train(replace(run, keep_going=keep_going))
        with suppress(UserError):  # a damaged file of metrics ends no run; the report names it
            for sign in health(folder.metrics()):
                tracker.note(f"health: {sign}")
        tracker.note(
            f"run folder: {folder.path}; {command_line('sspo', 'report', folder.name_in_commands)} draws it, "
            f"{command_line('sspo', 'eval', folder.name_in_commands)} measures it"
        )


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run starts from.

    policy      of the checkpoint, or of the config if there is none
    checkpoint  that a resumed run continues from
    forked      that a new run starts from, of another run
    saved       the state of optimizer and run of either
    limit       a length from which on the model is not computed right
    """

    policy: Policy
    checkpoint: Path | None
    forked: Path | None
    saved: dict[str, Any] | None
    limit: Limit | None


@dataclass(frozen=True, slots=True)
class Rendered:
    """The problems of a run, rendered.

    prompts     to train on, of each task
    benchmarks  to measure on, the validation problems first
    held_out    the validation problems
    left_out    training problems that a benchmark asks
    overlaps    of tasks and benchmarks, whether left out or not
    """

    prompts: list[list[Prompt]]
    benchmarks: list[Benchmark]
    held_out: list[Problem]
    left_out: list[Problem]
    overlaps: list[Overlap]


def prepare(
    folder: RunFolder,
    options: RunOptions,
    tracker: Tracker,
    interruption: Interruption,
    checker: AnswerChecker,
    environments: Mapping[str, Environment],
    resumed_by: Sequence[str] | None = None,
) -> Run:
    """Load or resumes everything; runs the cold start if it is not done yet.

    `options` are the folder's, or a resumed run's that differ from them in how it is computed: the folder keeps them.
    """
    check_sizes(options)
    torch.set_num_threads(options.threads)
    loaded = _load(folder, options, tracker)
    policy = loaded.policy
    state = RunState()
    if loaded.checkpoint and loaded.saved:
        with usable_state(loaded.checkpoint):
            state = RunState.from_state_dict(loaded.saved["run"])
    lost = folder.truncate(state.step, loaded.saved.get("files") if loaded.checkpoint and loaded.saved else None)
    tracker.start(options.steps, state.step)
    if loaded.checkpoint:
        tracker.note(f"resuming from {loaded.checkpoint}")
    if loaded.forked:
        tracker.note(f"starting from {loaded.forked}, {'with' if loaded.saved else 'without'} its optimizer's moments")
    for sentence in lost:
        tracker.note(sentence)
    if resumed_by is not None:
        checkpoint = loaded.checkpoint.name if loaded.checkpoint else None
        if moved := folder.note_resume(resumed_by, checkpoint, lost):
            tracker.note(f"the program is not that of the start before, so the end may differ: {'; '.join(moved)}")
    stage = Stage.of(environments, options.episode or EpisodeOptions(), policy)
    rendered = _render(options, policy, stage, tracker)
    needs_cold_start = loaded.checkpoint is None and options.cold_start.steps > 0
    engine = _check(options, loaded, stage, rendered, checker, tracker, needs_cold_start)
    if changes := list(differences(folder.config, options).values()):
        tracker.note(f"from here on: {', '.join(changes)}")
        if new_rate := describe_new_end(options.optimizer, state.step, folder.config.steps, options.steps):
            tracker.note(new_rate)
        folder.change(options, loaded.checkpoint.name if loaded.checkpoint else None, changes)
    _note_data(folder, rendered, tracker, is_resumed=loaded.checkpoint is not None)
    if needs_cold_start:
        policy = _start_cold(folder, options, policy, stage, rendered, tracker, interruption)
    reference = None
    if options.learning.kl:
        reference = (read_reference if loaded.checkpoint else keep_reference)(folder.path, policy)
    optimizer = adamw(
        policy.parameters, options.optimizer.betas, options.optimizer.weight_decay, options.optimizer.eight_bit
    )
    if loaded.checkpoint and loaded.saved:
        load_optimizer(loaded.checkpoint, loaded.saved, policy, optimizer)
    elif loaded.forked and loaded.saved:
        load_moments(loaded.forked, loaded.saved, policy, optimizer)
    run = Run(
        options=options,
        folder=folder,
        policy=policy,
        objective=_objective(options),
        optimizer=optimizer,
        engine=engine,
        stage=stage,
        prompts=rendered.prompts,
        benchmarks=rendered.benchmarks,
        checker=checker,
        tracker=tracker,
        interruption=interruption,
        state=state,
        reference=reference,
    )
    if loaded.forked:
        save(run)  # the other run may be deleted
    return run


def _objective(options: RunOptions) -> Objective:
    limit = options.rollout.max_new_tokens
    if options.episode and any(task.name in ENVIRONMENTS for task in options.tasks):
        limit = options.episode.max_tokens
    return build_objective(**options.objective.model_dump(), token_limit=limit)


def _load(folder: RunFolder, options: RunOptions, tracker: Tracker) -> Loaded:
    """Open the last whole checkpoint, or the model of the config."""
    device = resolve_device(options.device)
    checkpoint, damaged = ranks.on_first(lambda: set_damaged_aside(folder.checkpoints))
    for path in damaged:
        tracker.note(f"checkpoint {path.name.removeprefix('damaged-')} is damaged; it is set aside as {path}")
    check_memory(options, device_here(options, device, ranks.size()), tracker.note, checkpoint)
    by_torch = samples_by_torch(options.rollout, device)
    forked = None if checkpoint else ranks.on_first(lambda: checkpoint_to_fork(options, folder.path.parent))
    source = checkpoint or forked
    limit = check_structure(options.model, tracker.note, samples=by_torch, folder=source)
    policy = load_policy(options.model, device, source, options.chat.template)
    for note in policy.notes:
        tracker.note(note)
    if options.optimizer.eight_bit:
        adamw_8bit()  # reports at once that it is missing, and is needed to read its state
    needs_state = source is not None and (source == checkpoint or (options.fork and options.fork.optimizer))
    return Loaded(policy, checkpoint, forked, load_state(source) if source and needs_state else None, limit)


def _render(options: RunOptions, policy: Policy, stage: Stage, tracker: Tracker) -> Rendered:
    """Read the problems to train and to measure on, holds the validation problems out, and renders all of them."""
    task_weights, evaluation = [task.weight for task in options.tasks], options.evaluation
    to_measure = _problems_by_task(evaluation.benchmarks)
    problems, left_out, overlaps = _apart(options.tasks, to_measure, evaluation, tracker)
    problems, held_out = hold_out(problems, task_weights, evaluation.validation)
    if not evaluation.decontaminate:  # a checkpoint chosen by a benchmark's problems is no less contaminated
        names = [task.label for task in evaluation.benchmarks]
        overlaps += find_overlaps([(VALIDATION, held_out)], list(zip(names, to_measure, strict=True)))
    prompts = _render_by_task(problems, options, policy, stage, tracker)
    measured: list[tuple[str, str, int | None, str | None]] = [
        (task.label, task.split, task.max_new_tokens, task.path) for task in evaluation.benchmarks
    ]
    if held_out:
        measured, to_measure = [(VALIDATION, VALIDATION, None, None), *measured], [held_out, *to_measure]
    rendered = _render_by_task(to_measure, options, policy, stage, tracker)
    benchmarks = [
        Benchmark(name, split, prompts, limit, path)
        for (name, split, limit, path), prompts in zip(measured, rendered, strict=True)
    ]
    return Rendered(prompts, benchmarks, held_out, left_out, overlaps)


def _apart(
    tasks: Sequence[TaskOptions], asked: Sequence[Sequence[Problem]], evaluation: EvaluationOptions, tracker: Tracker
) -> tuple[list[list[Problem]], list[Problem], list[Overlap]]:
    """Read the problems of tasks, and leave out what the benchmarks ask, unless the options keep it; says what that is."""
    problems = [(task.label, of_task) for task, of_task in zip(tasks, _problems_by_task(tasks), strict=True)]
    benchmarks = [(task.label, of_task) for task, of_task in zip(evaluation.benchmarks, asked, strict=True)]
    overlaps = find_overlaps(problems, benchmarks)
    for overlap in overlaps:
        tracker.note(overlap.sentence(left_out=evaluation.decontaminate))
    left, left_out = decontaminate(problems, itertools.chain(*asked) if evaluation.decontaminate else ())
    return left, left_out, overlaps


def _note_data(folder: RunFolder, rendered: Rendered, tracker: Tracker, is_resumed: bool) -> None:
    """Record what the run is trained on. Of a resumed run, says if it is not what the run was started with."""
    problems = [prompt.problem for prompt in itertools.chain(*rendered.prompts)]
    left_out, fingerprint = rendered.left_out, problems_fingerprint(problems)
    data = {
        "problems": len(problems),
        "fingerprint": fingerprint,
        "overlaps": [asdict(overlap) for overlap in rendered.overlaps],
        "left_out": {"problems": len(left_out), "fingerprint": problems_fingerprint(left_out)} if left_out else None,
    }
    if is_resumed and (before := folder.data):
        data = before
        if before["fingerprint"] != fingerprint:
            tracker.note("the training problems are not those that the run was started with, so the end may differ")
    folder.note_data(data, question_keys(problems))


def _check(
    options: RunOptions,
    loaded: Loaded,
    stage: Stage,
    rendered: Rendered,
    checker: AnswerChecker,
    tracker: Tracker,
    needs_cold_start: bool,
) -> Engine:
    """Open the engine. Raises UserError for what would fail later: lengths, rewards, the model, and the engine's limits."""
    policy = loaded.policy
    longest = check_lengths(itertools.chain(*rendered.prompts), options.rollout.max_new_tokens, policy, stage)
    for benchmark in rendered.benchmarks:
        sampled = Conditions.of(options).on(benchmark).max_new_tokens
        longest = max(longest, check_lengths(benchmark.prompts, sampled, policy, stage))
    for prompts in rendered.prompts:
        check_rewards(policy.tokenizer, prompts[0], checker, options.reward.scoring, stage, tracker.note)
    engine = open_engine(options.rollout, policy, named=options.model.name is not None)
    engine.check_capacity(longest)
    by_torch, limit = isinstance(engine, TorchEngine), loaded.limit
    if by_torch and not samples_by_torch(options.rollout, policy.device):  # auto cannot sample this model with vLLM
        limit = check_structure(options.model, tracker.note, samples=True, folder=loaded.checkpoint or loaded.forked)
    check_reach(limit, longest, str(options.model.name))
    check_model(policy, samples=by_torch)
    if needs_cold_start:
        engine.sync(policy)  # whether weights arrive is known before the cold start, not after it
    engine.sleep()
    tracker.note(f"sampler: {engine.name}")
    return engine


def _start_cold(
    folder: RunFolder,
    options: RunOptions,
    policy: Policy,
    stage: Stage,
    rendered: Rendered,
    tracker: Tracker,
    interruption: Interruption,
) -> Policy:
    """Run the cold start on the demonstrations of its own tasks, or else of the run's, never on validation problems."""
    prompts = rendered.prompts
    if tasks := options.cold_start.tasks:
        asked = [[prompt.problem for prompt in b.prompts] for b in rendered.benchmarks if b.name != VALIDATION]
        problems, _, overlaps = _apart(tasks, asked, options.evaluation, tracker)
        demonstrated = [without(of_task, rendered.held_out) for of_task in problems]
        shared = [asdict(replace(overlap, task=f"the cold start's {overlap.task}")) for overlap in overlaps]
        data = folder.data
        folder.note_data(
            {**data, "overlaps": [*data["overlaps"], *shared]}, question_keys(itertools.chain(*demonstrated))
        )
        prompts = _render_by_task(demonstrated, options, policy, stage, tracker)
    demonstrations = demonstrations_of(
        list(itertools.chain(*prompts)), policy, stage.dialogue, stage.options.max_tokens
    )
    cache = folder.path.parent / COLD_STARTS
    with tracker.stage("cold start", options.cold_start.steps):
        policy, result = cold_start(policy, demonstrations, options, cache, interruption, tracker.advance, tracker.note)
    tracker.note(f"cold start: {result}")
    return policy


def _problems_by_task(tasks: Sequence[TaskOptions]) -> list[list[Problem]]:
    return [
        load_problems(task.name, path=task.path, split=task.split, limit=task.limit, layout=task.layout)
        for task in tasks
    ]


def _render_by_task(
    problems_by_task: Sequence[Sequence[Problem]], options: RunOptions, policy: Policy, stage: Stage, tracker: Tracker
) -> list[list[Prompt]]:
    template = options.template
    prompts_by_task: list[list[Prompt]] = []
    with tracker.stage("rendering prompts", sum(map(len, problems_by_task))):
        for problems in problems_by_task:
            prompts: list[Prompt] = []
            for start in range(0, len(problems), RENDERED_AT_A_TIME):
                part = problems[start : start + RENDERED_AT_A_TIME]
                prompts += [stage.render(problem, template, policy.tokenizer) for problem in part]
                tracker.advance(len(part))
            prompts_by_task.append(prompts)
    return prompts_by_task
