"""Options that have no effect because of other options. Setting such an option explicitly is refused.

Conditions of measurements, such as `evaluation.temperature` or `chat.system`, always have an effect, because a later `sspo eval`
measures the run under these conditions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sspo_cli.config.learning import ColdStartOptions
from sspo_cli.config.options import RunOptions
from sspo_cli.errors import UserError

Reason = Callable[[RunOptions], str | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """A set of options that other options can make ineffective.

    names   patterns of the dotted names of the options
    causes  dotted prefixes of the options that decide whether they have an effect
    reason  function that returns why they have no effect and what to do, or None if they have an effect
    """

    names: tuple[str, ...]
    causes: tuple[str, ...]
    reason: Reason


def refuse_ignored(layers: Sequence[Mapping[str, Any]], options: RunOptions) -> None:
    """Raise UserError for an option that a user has set and that has no effect in the resulting `options`.

    layers  dotted options of each file and of the command line; later layers override earlier ones

    An option is not refused if a later layer made it irrelevant, such as `-s cold_start.steps=0` after a preset with a cold
    start. A file that sets every option, as printed by `--dry-run`, is not checked.
    """
    for number, layer in enumerate(layers):
        if RunOptions.model_fields.keys() <= {name.partition(".")[0] for name in layer}:
            continue
        later = {name for after in layers[number + 1 :] for name in after}
        for name in _set_options(layer):
            for rule in RULES:
                is_overridden = any(later_name.startswith(rule.causes) for later_name in later)
                is_meant = not is_overridden and any(fnmatchcase(name, pattern) for pattern in rule.names)
                if is_meant and (reason := rule.reason(options)):
                    raise UserError(f"{name} would be ignored: {reason}")


def _set_options(layer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the options with a value, including those in lists of sections, such as `tasks.0.weight`."""
    for name, value in layer.items():
        if value is None or value == []:
            continue
        yield name
        for place, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, dict):
                yield from (f"{name}.{place}.{key}" for key in item)


def _tiny_model(options: RunOptions) -> str | None:
    if options.model.name is None:
        return None
    return f"model.name = {options.model.name} is used instead of the embedded model; leave it out"


def _revision(options: RunOptions) -> str | None:
    name = options.model.name
    if name is None:
        return "the embedded model has no revisions; set model.name, or leave it out"
    return f"model.name = {name} is a local folder; leave it out" if Path(name).exists() else None


def _vllm(options: RunOptions) -> str | None:
    rollout = options.rollout
    if options.model.name or rollout.engine == "vllm" or (rollout.vllm and rollout.vllm.server):
        return None
    return "rollout.engine = auto samples the embedded model with torch; set rollout.engine=vllm, or leave it out"


def _cold_start(options: RunOptions) -> str | None:
    if options.cold_start.steps:
        return None
    return "cold_start.steps = 0 skips the cold start; set cold_start.steps, or leave it out"


def _evaluation(options: RunOptions) -> str | None:
    if options.evaluation.benchmarks or options.evaluation.validation:
        return None
    return "evaluation.benchmarks is empty and evaluation.validation = 0, so nothing is evaluated; leave it out"


def _decontamination(options: RunOptions) -> str | None:
    return None if options.evaluation.benchmarks else "there is no benchmark in evaluation.benchmarks; leave it out"


def _single_task(options: RunOptions) -> str | None:
    return None if len(options.tasks) > 1 else "there is a single task, which all problems are drawn from; leave it out"


def _unweighted(_: RunOptions) -> str:
    return "weights are for `tasks`, from which problems are drawn; leave it out"


def _wandb(options: RunOptions) -> str | None:
    if options.wandb.mode != "disabled":
        return None
    return "wandb.mode = disabled; set wandb.mode=offline or online, or leave it out"


def _of(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


TASKS = ("tasks", "evaluation.benchmarks", "cold_start.tasks")
OF_COLD_START = tuple(name for name in ColdStartOptions.model_fields if name != "steps")
RULES = (
    Rule(("model.tiny.*",), ("model.name",), _tiny_model),
    Rule(("model.revision",), ("model.name",), _revision),
    Rule(("rollout.vllm.*",), ("model.name", "rollout.engine", "rollout.vllm.server"), _vllm),
    Rule(_of("cold_start", *OF_COLD_START), ("cold_start.steps", "model.name", "fork"), _cold_start),
    Rule(("evaluation.every",), ("evaluation.benchmarks", "evaluation.validation"), _evaluation),
    Rule(("evaluation.decontaminate",), ("evaluation.benchmarks",), _decontamination),
    Rule(("tasks.*.weight",), ("tasks",), _single_task),
    Rule(("evaluation.benchmarks.*.weight", "cold_start.tasks.*.weight"), TASKS, _unweighted),
    Rule(_of("wandb", "project", "entity", "group", "tags"), ("wandb.mode",), _wandb),
)
