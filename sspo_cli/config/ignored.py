"""Options that have no effect because of other options. Setting such an option explicitly is refused.

Conditions of measurements, such as `evaluation.temperature` or `chat.system`, always have an effect, because a later `sspo eval`
measures the run under these conditions.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sspo_cli.config.data import TaskOptions, task_from_text
from sspo_cli.config.hints import nested_section
from sspo_cli.config.learning import ColdStartOptions
from sspo_cli.config.named import NAMED_MODEL
from sspo_cli.config.options import RunOptions
from sspo_cli.errors import UserError

Reason = Callable[[RunOptions, str], str | None]
Layer = Mapping[str, Any]  # dotted options of a file or of the command line


@dataclass(frozen=True, slots=True)
class Rule:
    """A set of options that other options can make ineffective.

    names   patterns of the dotted names of the options
    causes  dotted prefixes of the options that decide whether they have an effect
    reason  function of all options and the name of one that returns why it has no effect and what to do, or None if it has an
            effect
    """

    names: tuple[str, ...]
    causes: tuple[str, ...]
    reason: Reason


def refuse_ignored(layers: Sequence[Layer], options: RunOptions) -> None:
    """Raise UserError for an option that a user has set and that has no effect in the resulting `options`.

    layers  options of each file and of the command line; later layers override earlier ones

    An option is not refused if it has its default, or if a later layer made it irrelevant, such as `-s cold_start.steps=0` after
    a preset with a cold start. A file that sets every option, as printed by `--dry-run`, is not checked.
    """
    if sentence := find_ignored(layers, options):
        raise UserError(sentence)


def find_ignored(layers: Sequence[Layer], options: RunOptions) -> str | None:
    """Return the sentence with which `refuse_ignored` refuses these layers, or None if every option has an effect."""
    for number, layer in enumerate(layers):
        if RunOptions.model_fields.keys() <= {name.partition(".")[0] for name in layer}:
            continue
        later = {name for after in layers[number + 1 :] for name in after}
        for name, value in _set_options(layer):
            for rule in RULES:
                is_overridden = any(later_name.startswith(rule.causes) for later_name in later)
                is_meant = not is_overridden and any(fnmatchcase(name, pattern) for pattern in rule.names)
                if is_meant and not is_default(name, value, options) and (reason := rule.reason(options, name)):
                    return f"{name} would be ignored: {reason}"
    return None


def _set_options(layer: Layer) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each option with a value, including those in lists of sections, such as `tasks.0.weight`."""
    for name, value in layer.items():
        if value is None or value == []:
            continue
        yield name, value
        if isinstance(value, dict):
            yield from _set_options({f"{name}.{key}": part for key, part in value.items()})
        if isinstance(value, list):
            yield from _set_options({f"{name}.{place}": _task_as_options(item) for place, item in enumerate(value)})


def _task_as_options(item: Any) -> Any:
    """Return a task that is written as text as its options; anything else unchanged."""
    with suppress(ValueError):
        return task_from_text(item, "") if isinstance(item, str) else item
    return item


def is_default(name: str, value: Any, options: RunOptions) -> bool:
    """Report whether an option is set to its default, which has the same effect as leaving it out."""
    if options.model.name and name in NAMED_MODEL:
        return bool(value == NAMED_MODEL[name])
    if name.endswith(".split"):
        return value in ("", "test" if name.startswith("evaluation.benchmarks.") else "train")
    section: type[BaseModel] | None = RunOptions
    *sections, last = re.sub(r"\.\d+", "", name).split(".")
    for part in sections:
        section = section and nested_section(section, part)
    if section is None or last not in section.model_fields:
        return False
    default = section.model_fields[last].default
    return bool((list(default) if isinstance(default, tuple) else default) == value)


def _task_of(options: RunOptions, name: str) -> TaskOptions | None:
    """Return the task to which an option such as `evaluation.benchmarks.1.split` belongs, if it is in the resulting list."""
    path, place = re.fullmatch(r"(.+?)\.(\d+)\..+", name).groups()  # type: ignore[union-attr]
    tasks: Any = options
    for part in path.split("."):
        tasks = getattr(tasks, part)
    return tasks[int(place)] if int(place) < len(tasks) else None


def _tiny_model(options: RunOptions, _: str) -> str | None:
    if options.model.name is None:
        return None
    return f"model.name = {options.model.name} is used instead of the embedded model; leave it out"


def _revision(options: RunOptions, _: str) -> str | None:
    name = options.model.name
    if name is None:
        return "the embedded model has no revisions; set model.name, or leave it out"
    return f"model.name = {name} is a local folder; leave it out" if Path(name).exists() else None


def _prompt(options: RunOptions, _: str) -> str | None:
    if options.chat.system is None:
        return None
    return "chat.system replaces the system turn of the prompt template, which is all that it sets; leave out one of the two"


def _any_gate(options: RunOptions, _: str) -> str | None:
    return None if ":" in (options.objective.gate or "") else _unneeded("gate", options.objective.gate or "null")


def _any_method(options: RunOptions, _: str) -> str | None:
    return None if ":" in options.objective.method else _unneeded("method", options.objective.method)


def _unneeded(kind: str, name: str) -> str:
    return f"objective.{kind} = {name} is not a {kind} of your own, written as module:function; leave it out"


def _vllm(options: RunOptions, _: str) -> str | None:
    rollout = options.rollout
    if rollout.engine == "vllm" or (rollout.vllm and rollout.vllm.server):
        return None
    if options.model.name is None:
        return "rollout.engine = auto samples the embedded model with torch; set rollout.engine=vllm, or leave it out"
    if options.device == "cpu":
        return "rollout.engine = auto samples with torch on a CPU; set rollout.engine=vllm, or leave it out"
    return None


def _vllm_on_a_gpu(options: RunOptions, _: str) -> str | None:
    return "vLLM uses it only on a GPU, and device = cpu; leave it out" if options.device == "cpu" else None


def _cold_start(options: RunOptions, _: str) -> str | None:
    if options.cold_start.steps:
        return None
    return "cold_start.steps = 0 skips the cold start; set cold_start.steps, or leave it out"


def _demonstrations(options: RunOptions, name: str) -> str | None:
    if name.startswith("evaluation."):
        return "benchmarks are not used in the cold start; leave it out"
    if name.startswith("tasks.") and options.cold_start.steps and options.cold_start.tasks:
        return "the demonstrations are those of cold_start.tasks; leave it out"
    return _cold_start(options, name)


def _evaluation(options: RunOptions, _: str) -> str | None:
    if options.evaluation.benchmarks or options.evaluation.validation:
        return None
    return "evaluation.benchmarks is empty and evaluation.validation = 0, so nothing is evaluated; leave it out"


def _decontamination(options: RunOptions, _: str) -> str | None:
    return None if options.evaluation.benchmarks else "there is no benchmark in evaluation.benchmarks; leave it out"


def _single_task(options: RunOptions, _: str) -> str | None:
    return None if len(options.tasks) > 1 else "there is a single task, which all problems are drawn from; leave it out"


def _unweighted(_: RunOptions, __: str) -> str:
    return "weights are for `tasks`, from which problems are drawn; leave it out"


def _split(options: RunOptions, name: str) -> str | None:
    task = _task_of(options, name)
    return f"{task.path} is a single file, which is read whole; leave it out" if task and task.is_single_file else None


def _wandb(options: RunOptions, _: str) -> str | None:
    if options.wandb.mode != "disabled":
        return None
    return "wandb.mode = disabled; set wandb.mode=offline or online, or leave it out"


def _of(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


TASKS = ("tasks", "evaluation.benchmarks", "cold_start.tasks")
OF_COLD_START = tuple(name for name in ColdStartOptions.model_fields if name != "steps")
CAUSES_OF_VLLM = ("model.name", "device", "rollout.engine", "rollout.vllm.server")
CAUSES_OF_COLD_START = ("cold_start.steps", "model.name", "fork")
RULES = (
    Rule(("model.tiny.*",), ("model.name",), _tiny_model),
    Rule(("model.revision",), ("model.name",), _revision),
    Rule(("prompt",), ("chat.system",), _prompt),
    Rule(("objective.allow_any_gate",), ("objective.gate", "objective.method"), _any_gate),
    Rule(("objective.allow_any_method",), ("objective.method",), _any_method),
    Rule(("rollout.vllm.*",), CAUSES_OF_VLLM, _vllm),
    Rule(_of("rollout.vllm", "gpu_memory_utilization", "enforce_eager", "sleep"), ("device",), _vllm_on_a_gpu),
    Rule(_of("cold_start", *OF_COLD_START), CAUSES_OF_COLD_START, _cold_start),
    Rule(
        tuple(f"{tasks}.*.columns.demonstration" for tasks in TASKS), (*TASKS, *CAUSES_OF_COLD_START), _demonstrations
    ),
    Rule(("evaluation.every",), ("evaluation.benchmarks", "evaluation.validation"), _evaluation),
    Rule(("evaluation.decontaminate",), ("evaluation.benchmarks",), _decontamination),
    Rule(("tasks.*.weight",), ("tasks",), _single_task),
    Rule(("evaluation.benchmarks.*.weight", "cold_start.tasks.*.weight"), TASKS, _unweighted),
    Rule(tuple(f"{tasks}.*.split" for tasks in TASKS), TASKS, _split),
    Rule(_of("wandb", "project", "entity", "group", "tags"), ("wandb.mode",), _wandb),
)
