"""Options and conditions of `sspo eval` that have no effect because of others. Giving them on the command line is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from sspo_cli import ranks
from sspo_cli.config import ENVIRONMENTS, BenchmarkOptions, find_ignored, flatten, is_default, merge_config
from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import Conditions
from sspo_cli.evaluation.targets import Target
from sspo_cli.policy.model import resolve_device

Plan = tuple[Target, Conditions, Sequence[BenchmarkOptions]]
OF_PROMPTS = ("prompt", "chat.system", "chat.user", "chat.template_kwargs")
OF_PROGRAMS = ("episode.observation_chars", "episode.call_timeout", "episode.memory_mib", "episode.parallel")


def refuse_ignored_in_eval(
    plans: Sequence[Plan],
    overrides: Sequence[str],
    benchmarks: Sequence[str],
    changes: Mapping[str, Any],
    engine: str | None,
) -> None:
    """Raise UserError for a flag or an override that changes nothing in the planned measurements.

    overrides   texts of `-s`, which are for models outside runs
    benchmarks  names of `-b`
    changes     conditions that were given as flags
    engine      the sampler of `--engine`
    """
    played = {ENVIRONMENTS.get(task.name) for _, _, tasks in plans for task in tasks}
    if (
        changes.get("seed")
        and "codeact" not in played
        and not any(conditions.temperature for _, conditions, _ in plans)
    ):
        raise UserError(
            "--seed would be ignored: greedy completions do not depend on it; add --temperature, such as 0.6, or leave it out"
        )
    _refuse_splits_of_files(plans)
    given = dict(flatten(merge_config([], overrides)))
    models = [plan for plan in plans if not plan[0].checkpoint]
    for option, value in given.items():
        if flag := _flag_instead(option, value, changes, engine):
            raise UserError(f"-s {option} would be ignored: {flag} is given, too; leave out one of the two")
        reasons = [_reason(option, given, plan, benchmarks, changes) for plan in models]
        if reasons and all(reasons) and not all(is_default(option, value, plan[0].options) for plan in models):
            raise UserError(f"-s {option} would be ignored: {reasons[0]}")
    sentences = [find_ignored([given], target.options) for target, _, _ in models]
    if sentences and all(sentences):
        raise UserError(f"-s {sentences[0]}")


def _refuse_splits_of_files(plans: Sequence[Plan]) -> None:
    """Raise UserError for `-b FILE:SPLIT`, unless it selects a benchmark that the options of a target list in this way."""
    listed = [task for target, _, _ in plans for task in target.options.evaluation.benchmarks]
    for task in (task for _, _, tasks in plans for task in tasks):
        if task.is_single_file and task.split != "test" and task not in listed:
            raise UserError(f"-b: {task.path} is a single file, which is read whole; leave out :{task.split}")


def _flag_instead(option: str, value: Any, changes: Mapping[str, Any], engine: str | None) -> str | None:
    """Return the flag that takes the place of an override, or None."""
    section, _, name = option.rpartition(".")
    if section == "evaluation" and changes.get(name, value) != value:
        return f"--{name.replace('_', '-')}"
    by_torch = engine == "torch" and section == "rollout.vllm"
    return f"--engine {engine}" if by_torch or (option == "rollout.engine" and engine not in (None, value)) else None


def _reason(
    option: str, given: Mapping[str, Any], plan: Plan, benchmarks: Sequence[str], changes: Mapping[str, Any]
) -> str | None:
    """Return why an override has no effect on the measurements of a model and what to do, or None if it has one.

    `rollout.max_new_tokens` is accepted in any case, because it is only the default of `evaluation.max_new_tokens`.
    """
    target, _, tasks = plan
    played = {ENVIRONMENTS.get(task.name) for task in tasks}
    if option == "evaluation.benchmarks" and benchmarks:
        listed = {task.label for task in target.options.evaluation.benchmarks[: len(given[option])]}
        if unnamed := listed - {task.label for task in tasks}:
            return f"-b names the benchmarks, and {min(unnamed)} is not among them; leave out one of the two"
    if (
        option == "evaluation.max_new_tokens"
        and "max_new_tokens" not in changes
        and all(t.max_new_tokens for t in tasks)
    ):
        return "each benchmark has its own token limit; use --max-new-tokens"
    if option.startswith(OF_PROMPTS) and None not in played:
        return "each benchmark is played in episodes, whose environment writes the prompt; leave it out"
    if option.startswith("episode.") and played == {None}:
        return "no benchmark is played in episodes; leave it out"
    if option in OF_PROGRAMS and "codeact" not in played:
        return "it is for programs, which only code-acting runs; leave it out"
    if option.startswith("rollout.vllm."):
        return _vllm_is_unused(target)
    return None


def _vllm_is_unused(target: Target) -> str | None:
    rollout = target.options.rollout
    if rollout.engine != "auto" or (rollout.vllm and rollout.vllm.server):
        return None
    where = "several ranks" if ranks.size() > 1 else "a CPU"
    if where == "a CPU" and resolve_device(target.options.device).type != "cpu":
        return None
    return f"rollout.engine = auto samples with torch on {where}; set rollout.engine=vllm, or leave it out"
