"""Checks of a run before it starts. They cover everything that can be checked without the model's weights."""

import importlib.util
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sspo_cli import ranks
from sspo_cli.config import ENVIRONMENTS, VALIDATION, EpisodeOptions, EvaluationOptions, RunOptions, TaskOptions
from sspo_cli.environments.environment import Environment
from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import hash_of
from sspo_cli.memory import check_memory, device_here
from sspo_cli.model_check import check_reach, check_structure
from sspo_cli.objectives import Objective, build_objective
from sspo_cli.policy.cold_start import check_demonstrations, demonstrations_of
from sspo_cli.policy.kernels import check_kernels
from sspo_cli.policy.model import Policy, resolve_device
from sspo_cli.policy.optimizer import adamw_8bit, check_weights
from sspo_cli.policy.outline import outline_policy
from sspo_cli.preflight import check_lengths, check_rewards, check_sizes
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout import check_engine, check_engine_of_ranks, samples_by_torch
from sspo_cli.rollout.episodes import Stage
from sspo_cli.rollout.vllm_server import VllmServer
from sspo_cli.tasks import load_problems
from sspo_cli.tasks.contamination import Overlap, decontaminate, find_overlaps
from sspo_cli.tasks.validation import hold_out, without
from sspo_cli.tracking.tracker import Tracker
from sspo_cli.tracking.wandb import check_wandb_options
from sspo_cli.types import Group, Problem, Prompt

RENDERED_AT_A_TIME = 256  # problems between two updates of the progress


@dataclass(frozen=True, slots=True)
class Rendered:
    """The problems of a run, rendered as prompts.

    prompts         training prompts of each task
    benchmarks      benchmarks to measure on; the validation problems come first
    left_out        training problems that were removed because they are also in a benchmark
    overlaps        overlaps between tasks and benchmarks, removed or not
    demonstrations  demonstrations for the cold start; empty if there will be no cold start
    demonstrated    problems of the demonstrations, if they come from `cold_start.tasks`
    their_overlaps  overlaps between `demonstrated` and benchmarks
    longest         largest number of tokens that a prompt and its completion may have together
    """

    prompts: list[list[Prompt]]
    benchmarks: list[Benchmark]
    left_out: list[Problem]
    overlaps: list[Overlap]
    demonstrations: list[Group]
    demonstrated: list[Problem]
    their_overlaps: list[Overlap]
    longest: int

    def hashes(self) -> dict[str, str]:
        """Hash the prompts and answers of each kind of problem, to compare them between machines."""
        measured = [prompt for benchmark in self.benchmarks for prompt in benchmark.prompts]
        prompts = {"training": list(itertools.chain(*self.prompts)), "benchmark": measured}
        hashes = {
            f"hash of the {kind} prompts": hash_of([[prompt.token_ids, prompt.problem.answer] for prompt in of_kind])
            for kind, of_kind in prompts.items()
        }
        shown = [[group.prompt.token_ids, group.completions[0].token_ids] for group in self.demonstrations]
        return {**hashes, "hash of the demonstrations": hash_of(shown)}


def objective_of(options: RunOptions) -> Objective:
    """Build the objective. Raises UserError for a method or a gate that breaks the paper's conditions."""
    limit = options.rollout.max_new_tokens
    if options.episode and any(task.name in ENVIRONMENTS for task in options.tasks):
        limit = options.episode.max_tokens
    return build_objective(**options.objective.model_dump(), token_limit=limit)


def examine(
    options: RunOptions,
    tracker: Tracker,
    checker: AnswerChecker,
    environments: Mapping[str, Environment],
    folder: Path | None,
    needs_cold_start: bool,
) -> Rendered | None:
    """Check a run as far as possible without weights, and render its problems.

    folder  checkpoint that replaces the model's own weights

    Returns None if the model cannot be built without weights. Raises UserError for the first error that is found.
    """
    device = examine_options(options)
    vllm = options.rollout.vllm
    by_torch = samples_by_torch(options.rollout.model_copy(update={"vllm": None}), device)
    if vllm and not vllm.server and by_torch:
        tracker.note(f"rollout.vllm has no effect: rollout.engine = {options.rollout.engine} samples with torch here")
    check_memory(options, device_here(options, device, ranks.size()), tracker.note, folder)
    limit = check_structure(
        options.model, tracker.note, samples=samples_by_torch(options.rollout, device), folder=folder
    )
    policy = outline_policy(options.model, device, folder, options.chat.template)
    if policy is None:
        return None
    stage = Stage.of(environments, options.episode or EpisodeOptions(), policy)
    rendered = render_all(options, policy, stage, checker, tracker, needs_cold_start)
    check_reach(limit, rendered.longest, str(options.model.name))
    if vllm and vllm.server:
        server = VllmServer(policy, vllm, options.rollout.max_rows, options.rollout.temperature)
        server.check_capacity(rendered.longest)
        server.client.close()
    return rendered


def examine_options(options: RunOptions) -> torch.device:
    """Check everything that needs neither model nor data, and return the device.

    Raises UserError if sizes do not fit the machine, if a device, an engine or a package is not available, or if a user's
    function cannot be loaded or breaks the paper's conditions.
    """
    objective_of(options)
    options.reward.scoring.check()
    check_sizes(options)
    device = resolve_device(options.device)
    if options.optimizer.eight_bit:
        adamw_8bit()
    check_engine(options.rollout)
    check_ranks(options)
    if options.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            "model.attention = flash_attention_2 needs flash-attn, which is not installed; use model.attention=sdpa"
        )
    if options.wandb.mode != "disabled":
        check_wandb_options(options.wandb)
    if options.wandb.mode == "online":
        _check_login()
    return device


def check_ranks(options: RunOptions) -> None:
    """Raise UserError for an option that the run's number of ranks does not support on any machine."""
    if ranks.size() > 1:
        ranks.check_device(options.device)
    check_engine_of_ranks(options.rollout)
    check_kernels(options.model, ranks.size())
    check_weights(options.model, ranks.size())


def examine_trials(trials: Sequence[RunOptions], count: int, *, here: bool) -> None:
    """Check the distinct options and the local files of a sweep's trials, without the network.

    count  number of ranks of each trial
    here   True if the trials run on this machine. The machines of a cluster have other devices, packages and files, so that only
           the options are checked that `count` ranks do not support on any machine.

    Raises UserError for the first error that is found.
    """
    for options in {options.model_copy(update={"seed": 0}).model_dump_json(): options for options in trials}.values():
        if here and count > 1:
            ranks.check_start(count, options.device)
        with ranks.assuming_size(count):
            (examine_options if here else check_ranks)(options)
    if not here:
        return
    tasks = [
        task
        for options in trials
        for task in (*options.tasks, *options.evaluation.benchmarks, *options.cold_start.tasks)
    ]
    for task in {task.model_dump_json(): task for task in tasks}.values():
        if task.path and (Path(task.path).suffix or task.path.startswith((".", "/", "~"))):
            load_problems(task.name, path=task.path, split=task.split, limit=1, layout=task.layout)


def _check_login() -> None:
    import netrc  # only a run with wandb needs it

    if os.environ.get("WANDB_API_KEY"):
        return
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        hosts = {}
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].strip("/")
    if host not in hosts:
        raise UserError(
            "wandb.mode = online needs a login at wandb, but there is none; run `wandb login`, set WANDB_API_KEY, or set "
            "wandb.mode=offline"
        )


def render_all(
    options: RunOptions,
    policy: Policy,
    stage: Stage,
    checker: AnswerChecker,
    tracker: Tracker,
    needs_cold_start: bool,
) -> Rendered:
    """Read the training and benchmark problems, hold out the validation problems, and render and check all problems.

    The policy may be without weights (`outline_policy`). Raises UserError if data cannot be read, if a prompt does not fit the
    model, if a perfect completion does not earn its full reward, or if a cold start has no demonstrations.
    """
    task_weights, evaluation = [task.weight for task in options.tasks], options.evaluation
    to_measure = _problems_by_task(evaluation.benchmarks)
    problems, left_out, overlaps = _apart(options.tasks, to_measure, evaluation, tracker)
    problems, held_out = hold_out(problems, task_weights, evaluation.validation)
    if not evaluation.decontaminate:  # choosing a checkpoint by benchmark problems is contamination, too
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
    longest = _check(options, policy, stage, prompts, benchmarks, checker, tracker)
    demonstrated: list[Problem] = []
    their_overlaps: list[Overlap] = []
    groups: list[Group] = []
    if needs_cold_start:
        shown = prompts
        if options.cold_start.tasks:
            of_tasks, _, their_overlaps = _apart(
                options.cold_start.tasks, to_measure[bool(held_out) :], evaluation, tracker
            )
            of_tasks = [without(of_task, held_out) for of_task in of_tasks]
            demonstrated = list(itertools.chain(*of_tasks))
            shown = _render_by_task(of_tasks, options, policy, stage, tracker)
        groups = demonstrations_of(list(itertools.chain(*shown)), policy, stage.dialogue, stage.options.max_tokens)
        check_demonstrations(groups)
    return Rendered(prompts, benchmarks, left_out, overlaps, groups, demonstrated, their_overlaps, longest)


def _apart(
    tasks: Sequence[TaskOptions], asked: Sequence[Sequence[Problem]], evaluation: EvaluationOptions, tracker: Tracker
) -> tuple[list[list[Problem]], list[Problem], list[Overlap]]:
    """Read the problems of tasks, and note the overlaps of the tasks with benchmarks.

    asked  problems of each benchmark

    Returns the remaining problems of each task, the removed problems, and the overlaps. With `evaluation.decontaminate`, the
    problems that are also in a benchmark are removed.
    """
    problems = [(task.label, of_task) for task, of_task in zip(tasks, _problems_by_task(tasks), strict=True)]
    benchmarks = [(task.label, of_task) for task, of_task in zip(evaluation.benchmarks, asked, strict=True)]
    overlaps = find_overlaps(problems, benchmarks)
    for overlap in overlaps:
        tracker.note(overlap.sentence(left_out=evaluation.decontaminate))
    left, left_out = decontaminate(problems, itertools.chain(*asked) if evaluation.decontaminate else ())
    return left, left_out, overlaps


def _check(
    options: RunOptions,
    policy: Policy,
    stage: Stage,
    prompts: Sequence[Sequence[Prompt]],
    benchmarks: Sequence[Benchmark],
    checker: AnswerChecker,
    tracker: Tracker,
) -> int:
    """Check lengths and rewards; return the largest number of tokens that a prompt and its completion may have together.

    Raises UserError in the same cases as `check_lengths` and `check_rewards`.
    """
    longest = check_lengths(itertools.chain(*prompts), options.rollout.max_new_tokens, policy, stage)
    for benchmark in benchmarks:
        sampled = Conditions.of(options).on(benchmark).max_new_tokens
        longest = max(longest, check_lengths(benchmark.prompts, sampled, policy, stage))
    for of_task in prompts:
        check_rewards(policy.tokenizer, of_task[0], checker, options.reward.scoring, stage, tracker.note)
    return longest


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
