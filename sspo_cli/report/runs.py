"""Run folders, read and sorted into groups whose runs differ in nothing but the seed."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sspo_cli.config import RunOptions
from sspo_cli.config_files import flatten
from sspo_cli.errors import UserError
from sspo_cli.objectives import METHODS
from sspo_cli.tracking.run_folder import RunFolder

# Options that do not change what is learned, beside the seed; runs that differ in them are comparable.
WITHOUT_EFFECT = (
    "seed",
    "threads",
    "device",
    "answer_timeout",
    "rollout.max_rows",
    "learning.token_budget",
    "objective.allow_any_gate",
    "cold_start.checkpoint_every",
    "model.gradient_checkpointing",
    "evaluation.",
    "checkpoint.",
    "wandb.",
)


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    state    as in status.json, or "killed" where that says running and no process writes the run
    metrics  a row for each optimizer step, indexed by it
    """

    path: Path
    options: RunOptions
    state: str
    step: int
    reason: str | None
    metrics: pd.DataFrame
    evaluations: list[dict[str, Any]]

    @property
    def finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, one for each seed.

    setting  model and training data; only groups of one setting are comparable
    label    method and gate, with the options that tell it from others of the same
    """

    setting: str
    label: str
    method: str
    gate: str
    details: str
    runs: list[Run]

    @property
    def counted(self) -> list[Run]:
        """The runs that means are taken over: finished ones, or all of them before one has."""
        return [run for run in self.runs if run.finished] or self.runs


@dataclass
class Collection:
    """Everything that was found; `left_out` says in a sentence each which run folders are in no group, and why."""

    groups: list[Group] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]


def collect(paths: Sequence[Path]) -> Collection:
    """Every run in those folders and below them, grouped. Raises UserError where there is no run to read."""
    collection = Collection()
    by_options: dict[Any, dict[int, Run]] = defaultdict(dict)
    for path in find_runs(paths):
        try:
            run = read_run(path)
        except UserError as error:  # a damaged folder is told, and does not keep the others from being read
            collection.left_out.append(f"`{path}`: {error}")
            continue
        seeds = by_options[tuple(sorted((key, str(value)) for key, value in _options_with_effect(run.options).items()))]
        rival = seeds.get(run.options.seed)
        if rival is not None:
            run, other = (rival, run) if _preference(rival) >= _preference(run) else (run, rival)
            collection.left_out.append(f"`{other.path}`: the same options and seed as `{run.path}`")
        seeds[run.options.seed] = run
    if not by_options:
        looked = ", ".join(map(str, paths))
        raise UserError("; ".join([f"no readable runs in {looked}", *collection.left_out]))
    collection.groups = _label([[runs[seed] for seed in sorted(runs)] for runs in by_options.values()])
    return collection


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Folders with a config.json and a status.json: model folders have a config.json too. Nothing inside a run is one."""
    found: dict[Path, Path] = {}
    for path in paths:
        for folder, folders, files in os.walk(path):
            if {"config.json", "status.json"} <= set(files):
                found.setdefault(Path(folder).resolve(), Path(folder))
                folders.clear()
            folders.sort()
    return list(found.values())


def read_run(path: Path) -> Run:
    """Raises UserError where a file of the run is unreadable or damaged."""
    folder = RunFolder.open(path)
    status = folder.status
    state = status["state"]
    if state == "running" and not folder.is_being_written():
        state = "killed"
    rows = folder.metrics()
    metrics = pd.DataFrame(rows).set_index("step") if rows else pd.DataFrame()
    return Run(
        path=path,
        options=folder.config,
        state=state,
        step=status["step"],
        reason=status["reason"],
        metrics=metrics.astype(float),
        evaluations=folder.evaluations(),
    )


def distinguish(names: Sequence[str], details: Sequence[Mapping[Any, Any]]) -> list[str]:
    """For each name that others share, the details in which those differ, such as `tau_neg 0.3, tau_pos 0.2`."""
    differing = []
    for name, own in zip(names, details, strict=True):
        same = [other for other_name, other in zip(names, details, strict=True) if other_name == name]
        keys = [key for key in own if len({str(other.get(key)) for other in same}) > 1]
        differing.append(", ".join(f"{key.removeprefix('objective.')} {own[key]}" for key in keys))
    return differing


def _options_with_effect(options: RunOptions) -> dict[str, Any]:
    return {
        key: value
        for key, value in flatten(options.model_dump(mode="json"))
        if not any(key == name or (name.endswith(".") and key.startswith(name)) for name in WITHOUT_EFFECT)
    }


def _preference(run: Run) -> tuple[bool, int]:
    """Of two runs that should be the same, the finished or the longer one."""
    return run.finished, run.step


def _label(configurations: list[list[Run]]) -> list[Group]:
    options = [runs[0].options for runs in configurations]
    settings = [f"{_model_name(o)}, {' + '.join(task.name for task in o.tasks)}" for o in options]
    labels = [_method_and_gate(o) for o in options]
    names = [f"{setting} {label}" for setting, label in zip(settings, labels, strict=True)]
    details = distinguish(names, [_options_with_effect(o) for o in options])
    groups = [
        Group(
            setting=setting,
            label=f"{label} ({detail})" if detail else label,
            method=o.objective.method,
            gate=str(o.objective.gate),
            details=detail,
            runs=runs,
        )
        for setting, label, detail, o, runs in zip(settings, labels, details, options, configurations, strict=True)
    ]
    order = list(METHODS)
    return sorted(groups, key=lambda group: (group.setting, order.index(group.method), group.label))


def method_name(method: str) -> str:
    """As the papers write it."""
    return method if method in ("arithmetic", "geometric", "sequence") else method.upper()


def _method_and_gate(options: RunOptions) -> str:
    method, gate = options.objective.method, options.objective.gate
    only_gate = METHODS[method].gates == (gate,)
    return method_name(method) if only_gate else f"{method_name(method)} {gate}"


def _model_name(options: RunOptions) -> str:
    model = options.model
    return (
        Path(model.name).name if model.name else f"tiny model ({model.tiny.layers} layers of {model.tiny.hidden_size})"
    )
