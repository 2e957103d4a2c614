"""From YAML files and dotted overrides to validated options, and a sentence for everything that is wrong in them."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sspo_cli.config.explain import explain
from sspo_cli.config.options import DEFAULT_METHOD, RunOptions
from sspo_cli.errors import UserError
from sspo_cli.redaction import redacted

MAY_CHANGE = {
    "learning.token_budget",
    "model.gradient_checkpointing",
    "model.kernels",
    "rollout.engine",
    "rollout.max_rows",
    "threads",
}


def load_config(files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> RunOptions:
    """Read YAML files, later ones over earlier ones, then `dotted.key=value` overrides, and validate the result.

    Raises UserError for an unreadable file, a malformed override and every option that does not validate.
    """
    return validate(merge_config(files, overrides))


def merge_config(files: Sequence[Path], overrides: Sequence[str]) -> dict[str, Any]:
    """Merge them in the same way into plain nested dictionaries, before validation."""
    over: dict[str, Any] = {}
    for override in overrides:  # in whatever order they stand, all of them are meant together
        over = merge(over, _parse_override(override))
    return merge_layers([*map(read_yaml, files), over])


def merge_layers(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge each layer over the ones before.

    An objective whose method changes is replaced, since another method has other options.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        objective, update = merged.get("objective"), layer.get("objective")
        if isinstance(objective, dict) and isinstance(update, dict):
            before = objective.get("method", DEFAULT_METHOD)
            if update.get("method", before) != before:
                merged = {**merged, "objective": {}}
        merged = merge(merged, layer)
    return merged


def merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Merge nested dictionaries, `update` over `base`; lists are replaced."""
    merged = dict(base)
    for key, value in update.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested dictionaries."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def validate(values: dict[str, Any]) -> RunOptions:
    """Validate a whole config.

    Raises UserError that names every wrong option by its dotted path, with the nearest valid name for a misspelt one.
    """
    try:
        return RunOptions.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(explain(error, RunOptions))) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """Read YAML 1.2, in which `1e-6` is a number. Raises UserError for a missing, malformed or non-mapping file."""
    try:
        values = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {file} is not UTF-8 text") from None
    except YAMLError as error:
        where = (
            f", line {error.problem_mark.line + 1}" if isinstance(error, MarkedYAMLError) and error.problem_mark else ""
        )
        problem = error.problem if isinstance(error, MarkedYAMLError) else str(error)
        raise UserError(f"config file {file}{where} is not valid YAML: {problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config file {file} must hold options as `key: value` lines, not a {type(values).__name__}")
    return values


def differences(left: RunOptions, right: RunOptions) -> dict[str, str]:
    """Describe by its dotted name each option that differs: `optimizer.learning_rate: 0.001 -> 0.0005`.

    Credentials in addresses are left out: they are not kept, so they cannot be compared.
    """
    a, b = (dict(flatten(redacted(options.model_dump(mode="json")))) for options in (left, right))
    changed = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    return {key: f"{key}: {a.get(key)} -> {b.get(key)}" for key in changed}


def may_change(key: str) -> bool:
    """Report whether a resumed run may have another value of this option: it says how the run is computed, not what.

    The results are the same to rounding, except that another engine or `rollout.max_rows` draws other completions.
    """
    return key in MAY_CHANGE or key.startswith("rollout.vllm")


def to_yaml(options: RunOptions) -> str:
    """Write a config file that gives the same run."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.dump(options.model_dump(mode="json"), text)
    return text.getvalue()


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the pairs of dotted key and value of nested dictionaries."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"`-s {text}` is not of the form section.option=value, e.g. -s optimizer.learning_rate=1e-4")
    try:
        parsed = YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise UserError(f"the value in `-s {text}` is not valid YAML; quote it") from None
    return nest({key: parsed})
