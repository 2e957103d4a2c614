"""Sentences for options that do not validate, with the nearest valid name for a misspelt one."""

import difflib
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, ValidationError

from sspo_cli.errors import shorten

MOST_SENTENCES = 8
LONGEST_VALUE = 120  # characters of a value that a sentence repeats


def explain(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """Yield a sentence for each wrong option of a config of type `root`, by its dotted path."""
    for item in error.errors(include_url=False)[:MOST_SENTENCES]:
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"unknown option `{path}`{_did_you_mean(item['loc'], root)}"
        elif item["type"] == "value_error":  # raised by our own validators, a sentence already
            yield str(item["ctx"]["error"])
        else:
            value, message = shorten(repr(item["input"]), LONGEST_VALUE), item["msg"]
            yield f"`{path}` = {value} is not valid: {message[0].lower()}{message[1:]}"


def option_named(name: str, root: type[BaseModel]) -> str | None:
    """Return the dotted path of the option that has this name or this path, or None."""
    paths = dict.fromkeys(path for option, path in _all_options(root) if name in (option, path))
    return next(iter(paths), None)


def _did_you_mean(location: tuple[str | int, ...], root: type[BaseModel]) -> str:
    """Name the same option in another section, else the nearest one in the same section, else the nearest anywhere."""
    section = root
    prefix: list[str] = []
    for part in location[:-1]:
        prefix.append(str(part))
        section = (nested_section(section, part) or section) if isinstance(part, str) else section
    name = str(location[-1])[:LONGEST_VALUE]
    here = {option: ".".join([*prefix, option]) for option in section.model_fields}
    everywhere: dict[str, str] = {}
    for option, path in _all_options(root):
        everywhere.setdefault(option, path)
    for known, cutoff in ((everywhere, 1.0), (here, 0.6), (everywhere, 0.75)):
        if near := difflib.get_close_matches(name, known, n=1, cutoff=cutoff):
            return f"; did you mean `{known[near[0]]}`?"
    return f"; the options here are {', '.join(here)}"


def nested_section(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Find the section class that a field holds, directly, in a list or as an optional."""
    annotation = section.model_fields[name].annotation if name in section.model_fields else None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _all_options(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in section.model_fields:
        yield name, prefix + name
        if nested := nested_section(section, name):
            yield from _all_options(nested, f"{prefix}{name}.")
