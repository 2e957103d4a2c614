"""Hints for options that do not exist and for values that do not validate."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

LONGEST_NAME = 120  # most characters of a name that are compared
NEAR, NEAR_ANYWHERE = 0.7, 0.8  # minimum similarity of two names within a section, and among all options

# Names of options in other programs.
ELSEWHERE = {
    "lr": "optimizer.learning_rate",
    "warmup_ratio": "optimizer.warmup_steps",
    "grad_clip": "optimizer.max_grad_norm",
    "lr_scheduler_type": "optimizer.schedule",
    "batch_size": "rollout.prompts",
    "train_batch_size": "rollout.prompts",
    "num_generations": "rollout.group_size",
    "num_completions": "rollout.group_size",
    "num_return_sequences": "rollout.group_size",
    "n": "rollout.group_size",
    "max_completion_length": "rollout.max_new_tokens",
    "max_tokens": "rollout.max_new_tokens",
    "num_iterations": "learning.mu",
    "ppo_epochs": "learning.epochs",
    "num_train_epochs": "steps",
    "max_steps": "steps",
    "total_steps": "steps",
    "loss_type": "objective.method",
    "algorithm": "objective.method",
    "epsilon": "objective.eps_low",
    "epsilon_low": "objective.eps_low",
    "epsilon_high": "objective.eps_high",
    "clip_ratio": "objective.eps_low",
    "cliprange": "objective.eps_low",
    "tau": "objective.tau_pos",
    "model_name_or_path": "model.name",
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    "lora_rank": "model.lora.rank",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "dataset": "tasks",
    "datasets": "tasks",
    "eval_steps": "evaluation.every",
    "save_steps": "checkpoint.every",
    "reward_fn": "reward.function",
    "system_prompt": "chat.system",
}
KL = re.compile(r"(?:use_|init_)?kl(?:_\w+)?|beta|adap_kl_ctrl")
TRUNCATED_SAMPLING = ("top_p", "top_k", "min_p", "typical_p", "repetition_penalty")
# The option that is most likely meant if a section is given a plain value.
MAIN = {
    "model": "name",
    "objective": "method",
    "wandb": "mode",
    "cold_start": "steps",
    "rollout": "engine",
    "fork": "run",
}
OFF = {"cold_start": "cold_start.steps=0", "wandb": "wandb.mode=disabled"}  # for sections that cannot be null
YES, NO = ("yes", "y", "on", "1", "True"), ("no", "n", "off", "0", "False")
MULTIPLES = {"k": 1_000, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000}


def hint_for_unknown(location: Sequence[str | int], root: type[BaseModel]) -> str:
    """Return the end of a sentence about an unknown option: the option that was probably meant, or all existing options."""
    section, prefix = _section_of(location[:-1], root)
    name = str(location[-1])[:LONGEST_NAME]
    fields = root.model_fields
    if indexed := re.fullmatch(r"(\w+)\[\d*\]", name):
        if indexed[1] in section.model_fields:
            return f"; {_whole_list('.'.join([*prefix, indexed[1]]), section.model_fields[indexed[1]], {})}"
        name = indexed[1]
    if "learning" in fields and KL.fullmatch(name):
        return "; did you mean `learning.kl`?"
    if name in TRUNCATED_SAMPLING and "rollout" in fields:
        return f"; {_truncated_sampling(name, root)}"
    if (known := ELSEWHERE.get(name)) and option_named(known, root) == known:
        return f"; did you mean `{known}`?"
    here = {option: ".".join([*prefix, option]) for option in section.model_fields}
    everywhere: dict[str, list[str]] = {}
    for option, path in _all_options(root):
        everywhere.setdefault(option, []).append(path)
    alike = everywhere.get(name, [])
    if not prefix:  # a name without a section may belong to any section
        top = [option for option in here if nested_section(root, option) is None]
        close = difflib.get_close_matches(name, top, n=1, cutoff=NEAR_ANYWHERE)
        close = close or difflib.get_close_matches(name, everywhere, n=1, cutoff=NEAR_ANYWHERE)
        alike = everywhere[close[0]][:1] if close else []
    if not alike and (near := _similar_option(name, here)):
        alike = [here[near]]
    if alike and len(alike) <= 2:
        return f"; did you mean {' or '.join(f'`{path}`' for path in alike)}?"
    return f"; the options here are {', '.join(here)}"


def hint_for_value(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Return the end of a sentence that says how to write a value correctly, or "" if the message says it already."""
    location, value, kind = error["loc"], error["input"], error["type"]
    path = ".".join(str(part) for part in location)
    section, _ = _section_of(location[:-1], root)
    field = section.model_fields.get(str(location[-1])) if location else None
    can_be_null = field is not None and type(None) in get_args(field.annotation)
    words = {str(value), str(value).lower()}
    if can_be_null and words & {"none", "nil", "false", "off", "no"} and kind != "bool_type":
        return f"; write {path}=null"
    nested = nested_section(section, str(location[-1])) if location else None
    if kind in ("model_type", "model_attributes_type") and nested and not isinstance(value, dict | list):
        return f"; {_write_section(path, value, nested, can_be_null)}"
    if kind == "list_type" and field is not None:
        return f"; {_whole_list(path, field, value)}"
    if kind in ("bool_type", "bool_parsing") and words & {*YES, *NO}:
        return f"; write {path}={'true' if words & set(YES) else 'false'}"
    if kind in ("int_type", "float_type", "int_parsing", "float_parsing"):
        number = _number(value)
        return "" if number is None else f"; write {path}={number:g}" if number % 1 else f"; write {path}={number:.0f}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"; to give text, quote it: {path}='\"{json.dumps(value)}\"'"
    if kind == "literal_error" and field is not None:
        known = list(_literals(field.annotation))
        near = difflib.get_close_matches(str(value), known, n=1) or [
            word for word in known if word.startswith(str(value))
        ]
        return f"; did you mean {near[0]}?" if near else ""
    if kind == "tuple_type" and field is not None:
        return f"; write {path}={json.dumps(field.default)}"
    return ""


def option_named(name: str, root: type[BaseModel]) -> str | None:
    """Return the dotted path of the option with this name or path, or None if there is no such option."""
    paths = dict.fromkeys(path for option, path in _all_options(root) if name in (option, path))
    return next(iter(paths), None)


def nested_section(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the class of a field that is a section, an optional section or a list of sections, otherwise None."""
    annotation = section.model_fields[name].annotation if name in section.model_fields else None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _section_of(location: Sequence[str | int], root: type[BaseModel]) -> tuple[type[BaseModel], list[str]]:
    section = root
    for part in location:
        section = (nested_section(section, part) or section) if isinstance(part, str) else section
    return section, [str(part) for part in location]


def _similar_option(name: str, here: Mapping[str, str]) -> str | None:
    """Return the option of `here` with a similar name, or with more or fewer words (`format_weight` for `format`), or None."""
    words = name.split("_")
    if near := difflib.get_close_matches(name, here, n=1, cutoff=NEAR_ANYWHERE):
        return near[0]
    longer = [option for option in here if set(words) < set(option.split("_"))]
    shorter = [option for option in here if option in words and len(option) > 2]
    if shorter or longer:
        return min(shorter, key=words.index) if shorter else longer[0]
    return next(iter(difflib.get_close_matches(name, here, n=1, cutoff=NEAR)), None)


def _truncated_sampling(name: str, root: type[BaseModel]) -> str:
    evaluation = nested_section(root, "evaluation")
    measured = f"; evaluation.{name} applies to evaluations" if evaluation and name in evaluation.model_fields else ""
    return f"training samples from the full softmax, because the objectives' importance ratios assume it{measured}"


def _write_section(path: str, value: Any, section: type[BaseModel], can_be_null: bool) -> str:
    options = list(section.model_fields)
    if value is True and can_be_null:
        default = section.model_fields[options[0]].default
        return f"write {path}={{}} for its defaults, or {path}={{{options[0]}: {default}}}"
    if value is False or str(value) in ("off", "none"):
        return f"write {OFF[path]}" if path in OFF else f"its options are {', '.join(options)}"
    if isinstance(value, str | int | float) and not isinstance(value, bool) and path in MAIN:
        return f"did you mean {path}.{MAIN[path]}={value}?"
    return f"its options are {', '.join(options)}"


def _whole_list(path: str, field: FieldInfo, value: Any) -> str:
    """Explain how to write a list, whose items cannot be overridden separately."""
    is_of_sections = any(isinstance(part, type) and issubclass(part, BaseModel) for part in get_args(field.annotation))
    if isinstance(value, str) or (isinstance(value, int | float) and not is_of_sections):
        return f"write {path}=[{value}]"
    item: dict[str, Any] = {}
    if isinstance(value, dict):
        own = next((part for part in value.values() if isinstance(part, dict)), value)
        item = {key: part for key, part in own.items() if not isinstance(part, dict)}
    if field.default and isinstance(field.default[0], BaseModel):
        item = {"name": field.default[0].model_dump().get("name", "arithmetic"), **item}
    written = ", ".join(
        f"{key}: {json.dumps(part) if not isinstance(part, str) else part}" for key, part in item.items()
    )
    return f"give the whole list, such as -s '{path}=[{{{written}}}]'" if written else "give the whole list"


def _number(value: Any) -> float | None:
    """Parse informal spellings of numbers: `10k`, `1,000`, `5%`, `16.0` for an integer."""
    if isinstance(value, float):
        return value if value % 1 == 0 else None
    if not isinstance(value, str):
        return None
    text = value.strip().replace(",", "").replace("_", "")
    found = re.fullmatch(r"([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)([kKMB%]?)", text)
    if not found:
        return None
    return float(found[1]) * MULTIPLES.get(found[2], 0.01 if found[2] else 1)


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_args(annotation) and get_origin(annotation) is not list:
        for part in get_args(annotation):
            yield from _literals(part)


def _all_options(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, dotted path) of every option; the options of tasks are yielded only under `tasks`."""
    for name in section.model_fields:
        yield name, prefix + name
        nested = nested_section(section, name)
        if nested and f"{prefix}{name}" not in ("cold_start.tasks", "evaluation.benchmarks"):
            yield from _all_options(nested, f"{prefix}{name}.")
