"""Groups of runs that differ only in the seed, and the names of groups."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import xxhash

from sspo_cli.config import RunOptions, TaskOptions, flatten
from sspo_cli.errors import quantity
from sspo_cli.objectives import METHODS, OPTIONS
from sspo_cli.report.records import RunRecord

T = TypeVar("T")

BASELINES = tuple(name for name, row in METHODS.items() if row.default and name != "sspo")  # compared with SSPO

# Options that do not change what is learned, and the seed. Runs that differ only in these options are comparable.
WITHOUT_EFFECT = (
    "seed",
    "threads",
    "device",
    "answer_timeout",
    "episode.parallel",
    "rollout.max_rows",
    "learning.token_budget",
    "objective.allow_any_gate",
    "objective.allow_any_method",
    "cold_start.checkpoint_every",
    "model.gradient_checkpointing",
    "evaluation.benchmarks",
    "evaluation.decontaminate",  # the left-out problems have an effect, see `effects_of`
    "evaluation.every",
    "evaluation.max_new_tokens",
    "evaluation.samples",
    "evaluation.temperature",
    "evaluation.top_p",
    "evaluation.top_k",
    "checkpoint.",
    "wandb.",
    "fork.",  # the starting checkpoint has an effect, see `effects_of`
)

# Options that determine the initial model and the problems of RL. No table compares runs that differ in these options.
START = ("model.", "cold_start.", "tasks", "prompt", "chat.", "episode.", "fork")

# Options that determine the regime in which methods are compared: the staleness of minibatches and the amount of sampling.
# Runs that differ in these options have separate blocks in each table.
REGIME = (
    "steps",
    "learning.mu",
    "learning.epochs",
    "rollout.prompts",
    "rollout.group_size",
    "rollout.max_new_tokens",
    "rollout.temperature",
    "extended",
)

LONGEST_TEXT = 80  # most characters of a value that is not shortened

HYPERPARAMETERS = [name for name, option in OPTIONS.items() if not option.choices]  # objective options that are numbers


@dataclass(frozen=True, eq=False)
class RunGroup:
    """Runs of one configuration, one for each seed. Groups are compared by identity and are hashable.

    model    name of the model
    start    model and training data as text, with the options in START in which groups of the same model and data differ
    setting  start, with the options in REGIME in which groups with the same start differ; groups of different settings are
             not comparable
    label    method and gate, with the options in `differs`
    differs  options in which groups with the same setting, method and gate differ, by dotted name
    """

    model: str
    start: str
    setting: str
    label: str
    method: str
    gate: str
    differs: dict[str, Any]
    runs: list[RunRecord]

    @property
    def finished(self) -> list[RunRecord]:
        return [run for run in self.runs if run.finished]

    @property
    def counted(self) -> list[RunRecord]:
        """Runs that are included in means: the finished runs, or all runs if none is finished."""
        return self.finished or self.runs

    @property
    def options(self) -> RunOptions:
        """Options of the first run; the runs differ only in the seed and in options without effect."""
        return self.runs[0].options

    @property
    def variant(self) -> str:
        """Label without the options in `differs`: method and gate."""
        return self.label.removesuffix(f" ({self.details})")

    @property
    def details(self) -> str:
        """Options in `differs`, as text."""
        return listed(self.differs)

    @property
    def configuration(self) -> str:
        """Hyperparameters of the method and options in `differs`, as text."""
        objective = self.options.objective.model_dump()
        own = {f"objective.{key}": objective[key] for key in HYPERPARAMETERS if key in objective}
        return listed(own | self.differs)

    def final(self, metric: str) -> list[float]:
        """Return the final value of a metric for each run in `counted` that has the metric."""
        return [value for run in self.counted if (value := run.final(metric)) is not None]


def group_runs(configurations: Sequence[list[RunRecord]]) -> list[RunGroup]:
    """Make a group of the runs of each configuration. Group names state differences; sorted by setting, method, label."""
    options = [runs[0].options for runs in configurations]
    effects = [effects_of(runs[0]) for runs in configurations]
    starts = [{key: value for key, value in effect.items() if key.startswith(START)} for effect in effects]
    models = [_model_name(o) for o in options]
    data = [f"{model}, {' + '.join(task.name for task in o.tasks)}" for model, o in zip(models, options, strict=True)]
    begun = [_named(name, detail) for name, detail in zip(data, distinguish(data, starts), strict=True)]
    regimes = [{key.rpartition(".")[2]: effect[key] for key in REGIME if key in effect} for effect in effects]
    settings = [_named(name, detail) for name, detail in zip(begun, distinguish(begun, regimes), strict=True)]
    variants = [_method_and_gate(o) for o in options]
    names = [f"{setting} {variant}" for setting, variant in zip(settings, variants, strict=True)]
    groups = [
        RunGroup(
            model=model,
            start=start,
            setting=setting,
            label=_named(variant, listed(differs)),
            method=o.objective.method,
            gate=o.objective.gate or "",
            differs=differs,
            runs=runs,
        )
        for model, start, setting, variant, differs, o, runs in zip(
            models, begun, settings, variants, differences(names, effects), options, configurations, strict=True
        )
    ]
    order = {method: place for place, method in enumerate(METHODS)}
    return sorted(
        groups,
        key=lambda group: (_natural(group.setting), order.get(group.method, len(order)), _natural(group.label)),
    )


def options_with_effect(options: RunOptions) -> dict[str, Any]:
    """Return the options that change what is learned, by dotted name, without the seed."""
    return {
        key: value
        for key, value in flatten(options.model_dump(mode="json"))
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in WITHOUT_EFFECT)
    }


def effects_of(run: RunRecord) -> dict[str, Any]:
    """Return everything that determines what a run learned, by name.

    These are the options with an effect, the training problems that were left out because a benchmark contains them, the
    checkpoint that the run was forked from, and the steps at which the run was extended.
    """
    effects = options_with_effect(run.options)
    if run.left_out:
        effects["tasks.left_out"] = run.left_out
    if (fork := run.options.fork) is None:
        del effects["fork"]
    else:
        optimizer = ", with its optimizer" if fork.optimizer else ""
        effects["fork"] = f"of {Path(fork.run).name}@{fork.step}{optimizer} ({fork.fingerprint})"
    if run.extended:
        effects["extended"] = ", ".join(f"at step {each['after']} from {each['steps'][0]}" for each in run.extended)
    return effects


def mean_over_seeds(runs: Sequence[RunRecord], metric: str) -> pd.Series:
    """Average a metric over runs, at the steps that all runs have. At later steps, the mean would jump where a run ends."""
    columns = [run.metrics[metric] for run in runs if metric in run.metrics]
    return pd.concat(columns, axis=1).mean(axis=1, skipna=False).dropna() if columns else pd.Series(dtype=float)


def distinguish(names: Sequence[str], details: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Describe each item by the details in which items with the same name differ: `tau_neg 0.3, tau_pos 0.2`."""
    return [listed(differing) for differing in differences(names, details)]


def differences(names: Sequence[str], details: Sequence[Mapping[Any, Any]]) -> list[dict[Any, Any]]:
    """Return, for each item, the details in which items with the same name differ; empty if the name is unique."""
    sharing: dict[str, list[Mapping[Any, Any]]] = defaultdict(list)
    for name, detail in zip(names, details, strict=True):
        sharing[name].append(detail)
    differing = {
        name: {
            key
            for key in dict.fromkeys(key for detail in alike for key in detail)
            if len({str(detail.get(key)) for detail in alike}) > 1
        }
        for name, alike in sharing.items()
    }
    return [
        {key: value for key, value in detail.items() if key in differing[name]}
        for name, detail in zip(names, details, strict=True)
    ]


def listed(details: Mapping[Any, Any]) -> str:
    """Format details as `tau_neg 0.3, tau_pos 0.2`. A long value is shortened to its beginning and a hash."""
    return ", ".join(f"{key.removeprefix('objective.')} {_brief(_readable(value))}" for key, value in details.items())


def _brief(value: str) -> str:
    """Shorten a long value for a table. Values that begin with a bracket or brace are not shortened."""
    if len(value) <= LONGEST_TEXT or value.startswith(("[", "{")):
        return value
    return f"“{' '.join(value[:40].split())}…” ({xxhash.xxh3_64_hexdigest(value.encode('utf-8', 'replace'))[:6]})"


def short_settings(groups: Iterable[RunGroup]) -> dict[str, str]:
    """Map each setting to a short name. If all settings have the same start, the short name is the regime."""
    starts = {group.setting: group.start for group in groups}
    if len(starts) == 1 or len(set(starts.values())) > 1:
        return {setting: setting for setting in starts}
    return {setting: setting.removeprefix(f"{start} (").removesuffix(")") for setting, start in starts.items()}


def method_name(method: str) -> str:
    """Return a method's name as its paper spells it."""
    if method == "cegppo":
        return "CE-GPPO"
    return method.upper() if method in METHODS and METHODS[method].default else method


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Collect items by their key, in order of first occurrence."""
    groups: dict[Any, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _natural(text: str) -> list[str | float]:
    """Return a sort key that orders numbers by value, so that 8B comes before 14B."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _readable(value: Any) -> str:
    """Format a value. A list of tasks becomes `gsm8k (limit 100) + math500`, without options that have default values."""
    if not (isinstance(value, list) and value and all(isinstance(task, dict) and "name" in task for task in value)):
        return str(value)
    defaults = TaskOptions().model_dump(mode="json")
    texts = []
    for task in value:
        given = {key: each for key, each in task.items() if key != "name" and each != defaults.get(key)}
        texts.append(_named(task["name"], ", ".join(f"{key} {each}" for key, each in given.items())))
    return " + ".join(texts)


def _named(name: str, details: str) -> str:
    return f"{name} ({details})" if details else name


def _method_and_gate(options: RunOptions) -> str:
    method, gate = options.objective.method, options.objective.gate
    has_choice = method in METHODS and METHODS[method].gates != (gate,)
    return f"{method_name(method)} {gate}" if has_choice else method_name(method)


def _model_name(options: RunOptions) -> str:
    model = options.model
    if model.name:
        return Path(model.name).name
    return f"tiny model ({quantity(model.tiny.layers, 'layer')} of {model.tiny.hidden_size})"
