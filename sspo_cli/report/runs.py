"""Run folders, read and sorted into groups whose runs differ in nothing but the seed; models that `sspo eval` measured."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from sspo_cli.config import RunOptions, flatten
from sspo_cli.errors import UserError
from sspo_cli.objectives import METHODS
from sspo_cli.tracking.files import read_json, read_jsonl
from sspo_cli.tracking.run_folder import RunFolder

# Which checkpoint's numbers go into the tables: the one after the last step, or the best one by validation.
Select = Literal["last", "best"]

VALIDATION = "validation"  # the benchmark of problems held out of the training tasks

# What a Pass@1 was measured with; numbers that differ in it are never put in one column.
MEASUREMENT = ("benchmark", "split", "n", "samples", "temperature", "max_new_tokens", "prompt")

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
    "evaluation.benchmarks",
    "evaluation.every",
    "evaluation.max_new_tokens",
    "evaluation.samples",
    "evaluation.temperature",
    "checkpoint.",
    "wandb.",
)


BASELINES = ("grpo", "gspo", "gmpo", "sapo")  # the methods that SSPO is compared with

# Options that make the model that RL starts from; runs that differ in them are compared in no table.
START = ("model.", "cold_start.", "tasks", "prompt")

# Options that make the regime that methods are compared in: how stale minibatches get, and how much is sampled. Runs that
# differ in them are no rival configurations of a method either, and have a block of their own in each table.
REGIME = (
    "steps",
    "learning.mu",
    "learning.epochs",
    "rollout.prompts",
    "rollout.group_size",
    "rollout.max_new_tokens",
    "rollout.temperature",
)

OWN = ("tau_neg", "tau_pos", "eps_low", "eps_high")  # the hyperparameters of methods


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    state        as in status.json, or "killed" where that says running and no process writes the run
    step         optimizer steps taken
    started      when it was first started; None in a folder that does not say
    metrics      a row for each optimizer step, indexed by it
    evaluations  the rows of eval/summary.json, each with all of MEASUREMENT
    """

    path: Path
    options: RunOptions
    state: str
    step: int
    reason: str | None
    started: datetime | None
    metrics: pd.DataFrame
    evaluations: list[dict[str, Any]]

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def seconds(self) -> float | None:
        """Wall time of all optimizer steps, evaluations and checkpoints not counted; None where no step says."""
        return float(self.metrics["time/step"].sum()) if "time/step" in self.metrics else None

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The evaluations on held-out training problems that training made, by step."""
        rows = [row for row in self.evaluations if row["benchmark"] == VALIDATION]
        return sorted((row for row in rows if same_measurement(row, rows[0])), key=lambda row: row["step"])

    def selected_step(self, select: Select) -> int | None:
        """The step whose numbers go into the tables; None where the run is not finished, or has no validation to go by."""
        if not self.finished:
            return None
        if select == "last":
            return self.options.steps
        best = max(self.validations, key=lambda row: row["pass_at_1"], default=None)  # the first of equal ones
        return None if best is None else int(best["step"])

    def weights(self) -> list[dict[str, Any]]:
        """The histograms of token weights, read now; none in a run without. Raises UserError where the file is damaged."""
        return RunFolder(self.path).weights()


@dataclass(frozen=True)
class BareModel:
    """A model that `sspo eval` measured outside a run.

    name         the last part of its hub name or path
    evaluations  as those of a Run; their step is 0
    """

    path: Path
    name: str
    evaluations: list[dict[str, Any]]


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, one for each seed.

    model    its name
    start    model and training data, and what else makes the model that RL starts from where groups differ in it
    setting  its start, and the regime where groups of that start differ in it; only groups of one setting are comparable
    label    method and gate, with the options that tell it from others of the same
    differs  those options, by dotted name
    """

    model: str
    start: str
    setting: str
    label: str
    method: str
    gate: str
    differs: dict[str, Any]
    runs: list[Run]

    @property
    def counted(self) -> list[Run]:
        """The runs that means are taken over: finished ones, or all of them before one has."""
        return [run for run in self.runs if run.finished] or self.runs

    @property
    def options(self) -> RunOptions:
        """Of one of its runs."""
        return self.runs[0].options

    @property
    def variant(self) -> str:
        """The label without the options: method and gate."""
        return self.label.removesuffix(f" ({self.details})")

    @property
    def details(self) -> str:
        """The options that tell it from others of its method and gate."""
        return told(self.differs)

    @property
    def hyperparameters(self) -> str:
        """The method's own, whether others differ in them or not, and the details."""
        objective = self.options.objective.model_dump()
        return told({f"objective.{key}": objective[key] for key in OWN if key in objective} | self.differs)


@dataclass
class Collection:
    """Everything that was found; `left_out` says in a sentence each which folders are not in it, and why."""

    groups: list[Group] = field(default_factory=list)
    bare_models: list[BareModel] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(group.setting for group in self.groups))


def collect(paths: Sequence[Path]) -> Collection:
    """Every run and every measured model in those folders and below them, the runs grouped.

    There may be models and no run, so no group. Raises UserError where there is neither.
    """
    collection = Collection()
    by_options: dict[Any, dict[int, Run]] = defaultdict(dict)
    for path in find_runs(paths):
        try:
            if _is_bare_model(path):
                collection.bare_models.append(read_bare_model(path))
                continue
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
    if not by_options and not collection.bare_models:
        looked = ", ".join(map(str, paths))
        raise UserError("; ".join([f"no readable runs in {looked}", *collection.left_out]))
    collection.groups = _label([[runs[seed] for seed in sorted(runs)] for runs in by_options.values()])
    return collection


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Folders of runs, which hold config.json and status.json (model folders have a config.json too), and of measured models,
    which hold model.json and eval/. Nothing inside one of them is another."""
    found: dict[Path, Path] = {}
    for path in paths:
        for folder, folders, files in os.walk(path):
            if {"config.json", "status.json"} <= set(files) or ("model.json" in files and "eval" in folders):
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
        started=datetime.fromisoformat(status["started"]) if "started" in status else None,
        metrics=metrics.astype(float),
        evaluations=_evaluations(folder),
    )


def read_bare_model(path: Path) -> BareModel:
    """Raises UserError where a file of the folder is unreadable or damaged."""
    about = read_json(path / "model.json")
    if not isinstance(about, dict) or not isinstance(about.get("model"), str):
        raise UserError(f"{path / 'model.json'} names no model")
    return BareModel(path, Path(about["model"]).name, _evaluations(RunFolder(path)))


def answers(source: Run | BareModel, benchmark: str) -> list[dict[str, Any]]:
    """The rows of eval/<benchmark>.jsonl, one for each problem and sample, read now; none where there is no such file.

    Raises UserError where the file is damaged.
    """
    return read_jsonl(RunFolder(source.path).eval / f"{benchmark}.jsonl")


def same_measurement(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two evaluations were measured alike, so that their numbers may stand in one column."""
    return all(left[name] == right[name] for name in MEASUREMENT)


def short_names(paths: Sequence[Path]) -> tuple[str, dict[Path, str]]:
    """The folder that all of them are in, from here where it is below, and each one's name in it."""
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    below = os.path.relpath(common)
    names = {path: os.path.relpath(path, common) for path in paths}
    return common if below.startswith("..") else below, names


def distinguish(names: Sequence[str], details: Sequence[Mapping[Any, Any]]) -> list[str]:
    """For each name that others share, the details in which those differ, such as `tau_neg 0.3, tau_pos 0.2`."""
    return [told(own) for own in differences(names, details)]


def differences(names: Sequence[str], details: Sequence[Mapping[Any, Any]]) -> list[dict[Any, Any]]:
    """For each name that others share, the details in which those differ."""
    shared: dict[str, list[Mapping[Any, Any]]] = defaultdict(list)
    for name, own in zip(names, details, strict=True):
        shared[name].append(own)
    differing = {
        name: {
            key for key in dict.fromkeys(key for own in same for key in own) if len({str(o.get(key)) for o in same}) > 1
        }
        for name, same in shared.items()
    }
    return [
        {key: value for key, value in own.items() if key in differing[name]}
        for name, own in zip(names, details, strict=True)
    ]


def told(details: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key.removeprefix('objective.')} {value}" for key, value in details.items())


def short_settings(groups: Iterable[Group]) -> dict[str, str]:
    """By setting, its name where others are near: of several with one start, the regime alone."""
    starts = {group.setting: group.start for group in groups}
    if len(starts) == 1 or len(set(starts.values())) > 1:
        return {setting: setting for setting in starts}
    return {setting: setting.removeprefix(f"{start} (").removesuffix(")") for setting, start in starts.items()}


def _is_bare_model(path: Path) -> bool:
    return not (path / "status.json").exists()


def _evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """With all of MEASUREMENT: older versions took one sample, and did not say so."""
    return [{**dict.fromkeys(MEASUREMENT), "samples": 1, **row} for row in folder.evaluations()]


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
    effects = [_options_with_effect(o) for o in options]
    starts = [{key: value for key, value in effect.items() if key.startswith(START)} for effect in effects]
    models = [_model_name(o) for o in options]
    data = [f"{model}, {' + '.join(task.name for task in o.tasks)}" for model, o in zip(models, options, strict=True)]
    begun = [_named(name, detail) for name, detail in zip(data, distinguish(data, starts), strict=True)]
    regimes = [{key.rpartition(".")[2]: effect[key] for key in REGIME} for effect in effects]
    settings = [_named(name, detail) for name, detail in zip(begun, distinguish(begun, regimes), strict=True)]
    variants = [_method_and_gate(o) for o in options]
    names = [f"{setting} {variant}" for setting, variant in zip(settings, variants, strict=True)]
    groups = [
        Group(
            model=model,
            start=start,
            setting=setting,
            label=_named(variant, told(differs)),
            method=o.objective.method,
            gate=str(o.objective.gate),
            differs=differs,
            runs=runs,
        )
        for model, start, setting, variant, differs, o, runs in zip(
            models, begun, settings, variants, differences(names, effects), options, configurations, strict=True
        )
    ]
    order = list(METHODS)
    return sorted(groups, key=lambda group: (_natural(group.setting), order.index(group.method), _natural(group.label)))


def _natural(text: str) -> list[str | float]:
    """To sort by: numbers by value, so that 8B comes before 14B."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _named(name: str, details: str) -> str:
    return f"{name} ({details})" if details else name


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
