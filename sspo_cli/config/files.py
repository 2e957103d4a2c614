"""Reading of YAML files and dotted overrides into validated options."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from sspo_cli.config.explain import explain
from sspo_cli.config.hints import option_named
from sspo_cli.config.ignored import refuse_ignored
from sspo_cli.config.learning import DEFAULT_METHOD
from sspo_cli.config.options import RunOptions
from sspo_cli.config.parsing import parse_yaml, read_yaml
from sspo_cli.config.presets import find_config
from sspo_cli.config.sampling import EpisodeOptions
from sspo_cli.errors import UserError, command_line
from sspo_cli.redaction import redacted

MAY_CHANGE = {
    "device",
    "episode.parallel",
    "evaluation.every",
    "fork.run",
    "learning.token_budget",
    "model.gradient_checkpointing",
    "model.kernels",
    "rollout.engine",
    "rollout.max_rows",
    "threads",
}
MAY_CHANGE_WHOLLY = ("rollout.vllm", "checkpoint.", "wandb.")
# Options that `sspo eval` reads for a model: loading, prompts, sampling and answer check.
READ_BY_EVAL = (
    *(
        "model.revision",
        "model.dtype",
        "model.attention",
        "prompt",
        "chat",
        "episode",
        "device",
        "threads",
    ),
    *("evaluation.benchmarks", "evaluation.max_new_tokens", "evaluation.samples", "evaluation.temperature"),
    *("evaluation.top_p", "evaluation.top_k"),
    *("rollout.engine", "rollout.vllm", "rollout.max_new_tokens", "rollout.max_rows", "answer_timeout"),
)
READ_BY_GRADING = ("answer_timeout",)
INSTEAD_IN_EVAL = {
    "model.name": "name the model as an argument, `sspo eval MODEL`",
    "model.weights": "use model.dtype",
    "seed": "use --seed, the seed of the sampling",
    "rollout.temperature": "use --temperature",
    "tasks": "select benchmarks with -b",
}
SWEEP_KEYS = ("options", "grid", "zip", "base", "best_of", "seeds", "blocks")  # none of them is an option of a run
MOST_PARTS = 10  # of a dotted key; no option has more than four
NULLS = ("null", "Null", "NULL", "~")


def load_config(
    files: Sequence[Path] = (), overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> RunOptions:
    """Merge YAML files, `flags` and `dotted.key=value` overrides, in this order, and validate the result.

    Later values take precedence. `flags` maps dotted keys to values that are not parsed.

    Raises UserError if a file cannot be read, an override is malformed or contradicts a flag, or an option is invalid.
    """
    return validate(merge_config(files, overrides, flags))


def merge_config(
    files: Sequence[Path], overrides: Sequence[str], flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Merge files, flags and overrides into nested dictionaries, in the order of `load_config`, without validation."""
    return merge_layers(_layers(files, overrides, flags or {}))


def _layers(files: Sequence[Path], overrides: Sequence[str], flags: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a nested dictionary of options for each file, followed by one for the whole command line.

    Raises UserError if a flag and an override have different values for the same option.
    """
    over: dict[str, Any] = {}
    for override in overrides:  # merged into one layer, so that a later objective.method does not discard earlier ones
        over = merge(over, _parse_override(override))
    given = dict(flatten(over))
    if twice := [key for key, value in flags.items() if given.get(key, value) != value]:
        raise UserError(
            f"{twice[0]} is given twice, as {flags[twice[0]]} and by -s as {given[twice[0]]}; leave out one of the two"
        )
    return [*map(_read_options, map(find_config, files)), merge(nest(flags), over)]


def _read_options(file: Path) -> dict[str, Any]:
    """Read a run's config file. Raises UserError for a sweep file."""
    values = read_yaml(file)
    if of_a_sweep := [key for key in values if key in SWEEP_KEYS]:
        raise UserError(
            f"{file} is a sweep file: it has {', '.join(of_a_sweep)}; run it with {command_line('sspo', 'sweep', '-c', file)}"
        )
    return values


def refuse_unread(overrides: Sequence[str], of_recorded: bool) -> None:
    """Raise UserError for an override that `sspo eval` would ignore.

    of_recorded  True if recorded completions are graded, False if a model is evaluated

    Config files are not checked, because they are also used for training.
    """
    read = READ_BY_GRADING if of_recorded else READ_BY_EVAL
    for key, _ in flatten(merge_config([], overrides)):
        if option_named(key, RunOptions) != key or key in read or key.startswith(tuple(f"{name}." for name in read)):
            continue  # validation reports unknown options
        what = "the grading of recorded completions" if of_recorded else "an evaluation"
        raise UserError(
            f"-s {key} would be ignored: {what} does not use it; {INSTEAD_IN_EVAL.get(key, 'leave it out')}"
        )


@dataclass(frozen=True, slots=True)
class Given:
    """The options of a command line.

    Overrides and dotted flags take precedence over files, and later files over earlier files.
    """

    files: Sequence[Path] = ()
    overrides: Sequence[str] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> RunOptions:
        """Merge and validate these options.

        Raises UserError in the same cases as `load_config`, and if an option would be ignored.
        """
        layers = _layers(self.files, self.overrides, self.flags)
        options = validate(merge_layers(layers))
        refuse_ignored([dict(flatten(layer)) for layer in layers], options)
        return options

    def over(self, recorded: RunOptions) -> RunOptions:
        """Apply these options on top of the options of an earlier run, and validate the result.

        If the method or the gate changes, its options get their defaults, not the recorded values. Raises UserError in the
        same cases as `options`, except that files may set options that are ignored, because the earlier run may have been
        started with the same files.
        """
        layers = _layers(self.files, self.overrides, self.flags)
        over = merge_layers(layers)
        options = validate(merge_layers([_without_derived(recorded.model_dump(mode="json"), over), over]))
        refuse_ignored([dict(flatten(layers[-1]))], options)
        return options

    @property
    def words(self) -> list[str]:
        """Return command-line arguments that give the same options."""
        flags = [
            f"{key}={json.dumps(value) if isinstance(value, bool) else value}" for key, value in self.flags.items()
        ]
        files = [part for file in self.files for part in ("-c", str(file))]
        return [*files, *(part for text in (*flags, *self.overrides) for part in ("-s", text))]


def _without_derived(recorded: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Remove recorded values that were derived from other options and would contradict the options in `over`."""
    kept = {**recorded, "rollout": dict(recorded["rollout"])}
    objective, rollout = _section(over, "objective"), _section(over, "rollout")
    gate = recorded["objective"].get("gate")
    if objective.get("gate", gate) != gate:
        kept["objective"] = {"method": recorded["objective"]["method"]}
    if recorded["episode"] == EpisodeOptions().model_dump(mode="json"):
        kept["episode"] = None
    leaves_vllm = rollout.get("engine") == "torch" and "vllm" not in rollout
    if leaves_vllm or "server" in _section(rollout, "vllm"):  # a server has other options than vLLM in this process
        kept["rollout"]["vllm"] = None
    return kept


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def merge_layers(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge layers of options; later ones take precedence.

    If a layer changes the method, the objective of earlier layers is discarded, because each method has its own options.
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
    """Merge nested dictionaries; values in `update` take precedence, and lists are replaced as a whole."""
    merged = dict(base)
    for key, value in update.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested dictionaries. Raises UserError for a key with more dots than any option has."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        parts = key.split(".")
        if len(parts) > MOST_PARTS:
            raise UserError(f"unknown option `{key}`; no option has so many dots")
        for part in reversed(parts):
            value = {part: value}
        nested = merge(nested, value)
    return nested


def validate(values: dict[str, Any]) -> RunOptions:
    """Validate a whole config.

    Raises UserError with the dotted path of every invalid option, and the nearest valid name for a misspelt one.
    """
    try:
        return RunOptions.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(explain(error, RunOptions))) from None


def differences(left: RunOptions, right: RunOptions) -> dict[str, str]:
    """Return {dotted name: description} of each option that differs: `optimizer.learning_rate: 0.001 -> 0.0005`.

    Credentials in addresses are ignored: they are not stored, so they cannot be compared.
    """
    a, b = (dict(flatten(redacted(options.model_dump(mode="json")))) for options in (left, right))
    changed = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    return {key: f"{key}: {a.get(key)} -> {b.get(key)}" for key in changed}


def may_change(key: str) -> bool:
    """Report whether a resumed run may change this option, because it affects only how results are computed.

    The results are then equal up to rounding. As an exception, a change of the engine or of `rollout.max_rows` changes which
    completions are sampled.
    """
    return key in MAY_CHANGE or key.startswith(MAY_CHANGE_WHOLLY)


def fixed_differences(recorded: RunOptions, given: RunOptions) -> list[str]:
    """Describe each changed option that a resumed run may not change; `steps` may be raised."""
    changes = differences(recorded, given)
    if given.steps > recorded.steps:
        del changes["steps"]
    return [line for key, line in changes.items() if not may_change(key)]


def to_yaml(options: RunOptions) -> str:
    """Format a config file that gives the same run."""
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
    parsed = parse_yaml(value, f"the value in `-s {text}`")
    if parsed is None and value.strip() not in NULLS:
        raise UserError(f"`-s {text}` has no value; write {key}=null to unset the option")
    return nest({key: parsed})
