"""The list of all options with their values, defaults and descriptions, derived from the fields."""

import difflib
import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sspo_cli.config.base import Options
from sspo_cli.config.data import BenchmarkOptions, TaskOptions
from sspo_cli.config.hints import nested_section
from sspo_cli.config.learning import MethodOptions
from sspo_cli.config.named import ADAPTERS, NAMED_MODEL, TASK
from sspo_cli.config.options import RunOptions
from sspo_cli.errors import UserError

KINDS = {int: "integer", float: "number", bool: "true or false", str: "text", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Option:
    """An entry of the list.

    name     dotted name; options of list items are named like `tasks[].limit`
    kind     its possible values
    default  default in YAML; None for a section
    """

    name: str
    kind: str
    default: str | None
    description: str

    @property
    def lines(self) -> list[str]:
        """Return a heading for a section, or the option with its default, values and description."""
        if self.default is None:
            return [f"\n{self.name}: {self.description}"]
        return [f"  {self.name} = {self.default}    ({self.kind})", f"      {self.description}"]


def list_options(wanted: str | None = None) -> list[Option]:
    """Return the options of the section `wanted` or the options with this name; all options if `wanted` is None.

    Raises UserError if there is no such section or option.
    """
    every = list(_options(RunOptions, ""))
    if wanted is None:
        return every
    plain = wanted.replace("[]", "")
    listed = [option for option in every if _path(option) == plain or _path(option).startswith(f"{plain}.")]
    listed = listed or [option for option in every if _path(option).rpartition(".")[2] == plain]
    if listed:
        return listed
    known = dict.fromkeys(name for option in every for name in (_path(option), _path(option).rpartition(".")[2]))
    near = difflib.get_close_matches(wanted, known, n=1)
    sections = ", ".join(name for name in RunOptions.model_fields if nested_section(RunOptions, name))
    hint = f"did you mean {near[0]}?" if near else f"the sections are {sections}"
    raise UserError(f"there is no option or section {wanted or repr(wanted)}; {hint}")


def _path(option: Option) -> str:
    return option.name.replace("[]", "")


def _options(section: type[BaseModel], prefix: str) -> Iterator[Option]:
    """Yield the options of a section, followed by those of its sub-sections."""
    parts = []
    for name, field in section.model_fields.items():
        nested = nested_section(section, name)
        is_list = nested is not None and get_origin(_without_none(field.annotation)) is list
        if nested is None or is_list or field.default is None:
            yield Option(prefix + name, _kind(field), _default(field, section), _description(field, prefix + name))
        if nested is not None:
            parts.append((prefix + name + ("[]" if is_list else ""), nested))
    for path, nested in parts:
        yield Option(path, "", None, _summary(nested, path))
        if path != "cold_start.tasks[]":
            of_tasks = TaskOptions.model_fields if nested is BenchmarkOptions else ()
            named = ((option, option.name.removeprefix(f"{path}.")) for option in _options(nested, f"{path}."))
            yield from (option for option, name in named if re.split(r"\W", name)[0] not in of_tasks)


def _summary(section: type[BaseModel], path: str) -> str:
    if path == "evaluation.benchmarks[]":
        return "the options of tasks[], and"
    if path == "cold_start.tasks[]":
        return "the options of tasks[]."
    return (section.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()


def _description(field: FieldInfo, name: str) -> str:
    sentences = [field.description or ""]
    if name in NAMED_MODEL:
        adapters = f", {ADAPTERS[name]} with model.lora" if name in ADAPTERS else ""
        sentences.append(f"for a named model by default {NAMED_MODEL[name]}{adapters}")
    if name == "tasks":
        sentences.append(f"for a named model by default {TASK}")
    if name == "evaluation.benchmarks":
        sentences.append("for a named model by default the test splits of its tasks")
    return "; ".join(sentences)


def _default(field: FieldInfo, section: type[BaseModel]) -> str:
    if issubclass(section, MethodOptions) and field.default is None:
        return "the method's default"
    if field.is_required():
        return "none (required)"
    return json.dumps(_plain(field.get_default(call_default_factory=True)), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return value.model_dump(mode="json", include=value.model_fields_set | {"name"})
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _kind(field: FieldInfo) -> str:
    kinds = list(dict.fromkeys(_kinds(field.annotation)))
    return ", ".join(sorted(kinds, key=lambda kind: kind == "null"))


def _kinds(annotation: Any) -> Iterator[str]:
    """Yield a short description of each kind of value that a type annotation allows."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _kinds(parts[0])
    elif origin in (Union, types.UnionType):
        for part in parts:
            yield from _kinds(part)
    elif origin is Literal:
        yield from (str(value) for value in parts)
    elif origin in (list, tuple):
        inner = [part for part in parts if part is not Ellipsis]
        yield f"list of {len(inner) if origin is tuple else ''} {'/'.join(_kinds(inner[0]))}s".replace("  ", " ")
    elif origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        yield "section"
    else:
        yield KINDS.get(annotation, str(annotation))


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation
