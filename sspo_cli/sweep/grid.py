"""Sweep files and their expansion into trials."""

import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import xxhash
from pydantic import Field, Strict, ValidationError, model_validator
from rich import box
from rich.console import Console
from rich.table import Table

from sspo_cli.config import (
    SWEEP_KEYS,
    Options,
    RunOptions,
    differences,
    explain,
    flatten,
    may_change,
    merge_config,
    merge_layers,
    nest,
    read_yaml,
    refuse_ignored,
    validate,
)
from sspo_cli.config.base import Seed
from sspo_cli.errors import UserError, command_line, quantity
from sspo_cli.forks import resolve_fork
from sspo_cli.redaction import redacted
from sspo_cli.report.choices import best_configurations
from sspo_cli.report.collect import collect
from sspo_cli.tracking.run_folder import RunFolder

NAMED = ("objective.method", "objective.gate", "seed")  # always in a trial's name
# Not in a trial's key: threads depends on the number of parallel trials, and the folder of a forked run may be moved.
OF_THE_MACHINE: dict[str, Any] = {"threads": True, "fork": {"run"}}
WIDE = 240  # characters, if no terminal reports its width
MOST_TRIALS = 5000  # unless the user allows more

FilePath = Annotated[Path, Strict(False)]  # text in YAML


class Block(Options):
    """Part of a sweep: `options` for all its trials, `grid` of lists to cross, `zip` of lists to iterate in parallel."""

    options: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    zip: list[dict[str, list[Any]]] = []

    @model_validator(mode="before")
    @classmethod
    def _options_have_their_place(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if str(key).partition(".")[0] in RunOptions.model_fields and key != "seed":
                raise ValueError(
                    f"{key} is an option of the trials; write it under `options`, or its values under `grid`"
                )
        return values

    @model_validator(mode="after")
    def _lists_make_sense(self) -> "Block":
        for group in self.zip:
            if not group:
                raise ValueError("a zip group is empty, so there is nothing to run")
            if len({len(values) for values in group.values()}) > 1:
                raise ValueError(f"the lists of the zip group {', '.join(group)} differ in length")
        for key, values in [*self.grid.items(), *(item for group in self.zip for item in group.items())]:
            if not values:
                raise ValueError(f"the list of {key} is empty, so there is nothing to run")
        given = [*self.options, *self.grid, *(key for group in self.zip for key in group)]
        if "seed" in given:
            raise ValueError("seed is not an option of a sweep; list the seeds under `seeds`")
        if twice := [key for key in given if given.count(key) > 1]:
            raise ValueError(f"{twice[0]} is given twice; leave out one of the two")
        return self

    def count(self) -> int:
        """Return the number of combinations."""
        lists = [*self.grid.values(), *(next(iter(group.values())) for group in self.zip)]
        return math.prod(map(len, lists))

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the dotted options of every combination, without those in `options`."""
        axes = [[{key: value} for value in values] for key, values in self.grid.items()]
        axes += [
            [dict(zip(group, values, strict=True)) for values in zip(*group.values(), strict=True)]
            for group in self.zip
        ]
        for combination in itertools.product(*axes):
            yield {key: value for part in combination for key, value in part.items()}


class SweepOptions(Block):
    """A sweep file: a base config and the options that vary.

    Each block, for example a method with its own grid, is crossed with the grid of the sweep and with `seeds`.
    """

    base: list[FilePath] = Field([], description="config files, relative to the sweep file")
    best_of: FilePath | None = Field(
        None,
        description="file of an earlier sweep, relative to this file; the configuration with the best validation Pass@1 for "
        "each method and gate of that sweep becomes a block, so `blocks` must be left out",
    )
    seeds: list[Seed] = Field([0], min_length=1)
    blocks: list[Block] = Field([Block()], min_length=1)

    @model_validator(mode="after")
    def _blocks_come_from_one_place(self) -> "SweepOptions":
        if self.best_of is not None and "blocks" in self.model_fields_set:
            raise ValueError("best_of and blocks exclude each other; give one of the two")
        return self


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep. `name` lists the options that vary, and ends in the trial's key, a hash of its options."""

    name: str
    varied: dict[str, Any]
    options: RunOptions

    @property
    def key(self) -> str:
        return self.name.rpartition("-")[2]


def load_sweep(
    file: Path,
    overrides: Sequence[str],
    runs_dir: Path,
    most: int = MOST_TRIALS,
    asked_for_by: Sequence[Path] = (),
) -> list[Trial]:
    """Expand a sweep file into its distinct trials, in the order of the file.

    runs_dir      folder of runs, where the sweep of `best_of` has its folder
    most          most trials that are allowed
    asked_for_by  sweep files that refer to `file` by `best_of`, directly or indirectly

    Raises UserError if the file or a trial does not validate, if the sweep of `best_of` is not finished or refers back to
    `file`, or if there are too many trials.
    """
    chain = [*asked_for_by, file]
    if file.resolve() in {path.resolve() for path in asked_for_by}:
        raise UserError(f"best_of is circular: {' -> '.join(map(str, chain))}")
    values = read_yaml(file)
    if values and not values.keys() & set(SWEEP_KEYS) and values.keys() <= RunOptions.model_fields.keys():
        raise UserError(
            f"{file} holds the options of one run; start it with {command_line('sspo', 'train', '-c', file)}, or write a sweep "
            "file that lists values under `grid`, with this file as its `base`"
        )
    try:
        sweep = SweepOptions.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{file}: {'; '.join(explain(error, SweepOptions))}") from None
    blocks = sweep.blocks
    if sweep.best_of is not None:
        blocks = _best_blocks(file.parent / sweep.best_of, overrides, runs_dir, most, chain)
    count = sweep.count() * len(sweep.seeds) * sum(block.count() for block in blocks)
    if count > most:
        raise UserError(
            f"{file} expands to {count:,} trials, more than {most:,}; shorten its lists, or allow it with --max-trials"
        )
    base = [merge_config([file.parent / path], []) for path in sweep.base]
    over = merge_config([], overrides)
    points = [
        _Point(
            {**sweep.options, **of_sweep, **block.options, **of_block, "seed": seed},
            (sweep.options, block.options),
            {**of_sweep, **of_block},
        )
        for of_sweep, block, seed in itertools.product(sweep.combinations(), blocks, sweep.seeds)
        for of_block in block.combinations()
    ]
    return _distinct_trials(file, points, base, over, runs_dir)


@dataclass(frozen=True, slots=True)
class _Point:
    """A combination of a sweep file, as dotted options: all of them, the layers of those in `options`, and the others."""

    values: dict[str, Any]
    fixed: tuple[dict[str, Any], ...]
    varied: dict[str, Any]

    def layers(self, base: Sequence[dict[str, Any]], over: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the layers between `base` and `over` for `refuse_ignored`, which are dotted options.

        What varies is the last layer: an option of many trials may be without effect in some of them, but must not vary then.
        """
        varied = {name: value for name, value in flatten(self.varied) if name not in over}
        return [*base, *(dict(flatten(layer)) for layer in self.fixed), over, varied]


def _distinct_trials(
    file: Path, points: Sequence[_Point], base: Sequence[dict[str, Any]], over: dict[str, Any], runs_dir: Path
) -> list[Trial]:
    """Make the distinct trials of the points, whose dotted options override `base` and are overridden by `over`."""
    every = [point.values for point in points]
    varying = {key for key in dict.fromkeys(itertools.chain(*every)) if _varies(key, every)}
    *below, overrides = (dict(flatten(layer)) for layer in (*base, over))
    trials: dict[str, Trial] = {}
    for point in points:
        values = point.values
        try:
            options = resolve_fork(validate(merge_layers([*base, nest(values), over])), runs_dir)
            refuse_ignored(point.layers(below, overrides), options)
            _refuse_credentials(options)
        except UserError as error:
            which = ", ".join(f"{key}={value}" for key, value in values.items() if key in varying)
            raise UserError(f"{file}{', the trial with ' if which else ''}{which}: {error}") from None
        # An override may have replaced an option that varies, or have chosen a method that lacks it.
        resolved = dict(flatten(options.model_dump(mode="json")))
        lost = overrides.keys() | {k for k in values if k.startswith("objective.") and resolved.get(k) != values[k]}
        varied = {key: value for key, value in values.items() if key in varying - lost}
        trial = Trial(_trial_name(varied, options), varied, options)
        trials.setdefault(trial.name, trial)
    return list(trials.values())


def _varies(key: str, points: Sequence[dict[str, Any]]) -> bool:
    first = json.dumps(points[0].get(key))
    return any(json.dumps(point.get(key)) != first for point in points)


def print_trials(trials: Sequence[Trial], folder: Path, how: str = "") -> None:
    """Print a row for each trial with the options that vary, and its state if it has been started in `folder`.

    how  text after the number of trials, such as ` of 2 ranks`
    """
    options = list(dict.fromkeys(key for trial in trials for key in trial.varied))
    title = f"{quantity(len(trials), 'trial')}{how}, to be run in {folder}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in (*map(_short, options), "key", "state"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for trial in trials:
        values = (str(trial.varied.get(key, "")) for key in options)
        table.add_row(*values, trial.key, _state(RunFolder(folder / trial.name)))
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, emoji=False)
    console.print(table)


def _best_blocks(
    file: Path, overrides: Sequence[str], runs_dir: Path, most: int, asked_for_by: Sequence[Path]
) -> list[Block]:
    """Return a block for each method and gate of the sweep in `file`, with its best configuration by validation."""
    folder = runs_dir / file.stem
    trials = {trial.name: trial for trial in load_sweep(file, overrides, runs_dir, most, asked_for_by)}
    check_trials(list(trials.values()), folder)
    if unfinished := [name for name in trials if RunFolder(folder / name).status.get("state") != "finished"]:
        raise UserError(
            f"best_of needs finished trials, but {len(unfinished)} of {quantity(len(trials), 'trial')} of {file} are not "
            f"finished in {folder}; first run {command_line('sspo', 'sweep', '-c', file)}"
        )
    groups = collect([folder / name for name in trials]).groups
    chosen, _ = best_configurations(groups, "last")
    variants = [(group.setting, group.method, group.gate) for group in chosen]
    if len(variants) > len(set(variants)):
        raise UserError(
            f"best_of cannot choose among the trials of {file}, because they have no validation problems in common; "
            "set evaluation.validation there"
        )
    blocks = []
    for trial in (trials[group.runs[0].path.name] for group in chosen):
        objective = {"objective.method": trial.options.objective.method, "objective.gate": trial.options.objective.gate}
        blocks.append(Block(options=objective | {key: value for key, value in trial.varied.items() if key != "seed"}))
    return blocks


def check_trials(trials: Sequence[Trial], folder: Path) -> None:
    """Raise UserError if a trial was started with other options than it has now, or has been extended.

    The trial's name does not reveal this: its hash leaves out options at their defaults.
    """
    for trial in trials:
        run = RunFolder(folder / trial.name)
        if not run.config_path.exists():
            continue
        if run.extended:
            before, after = run.extended[-1]["steps"]
            raise UserError(
                f"{run.path} was extended from {before} to {after} steps, so it is no longer a trial of this sweep; move it "
                "elsewhere, or give the sweep another --name"
            )
        changes = differences(run.config, trial.options)
        if changed := [line for key, line in changes.items() if not may_change(key)]:
            raise UserError(
                f"{run.path} was started with other options ({'; '.join(changed)}); give the sweep another --name, or "
                "restore the original values"
            )


def _refuse_credentials(options: RunOptions) -> None:
    """Raise UserError for an address with credentials, because trials get their options in files or over the network."""
    values = flatten(options.model_dump(mode="json"))
    if named := [key for key, value in values if redacted(value) != value]:
        raise UserError(
            f"{named[0]} holds credentials, which a sweep would write to a file; leave them out and set them in the environment "
            "as SSPO_VLLM_CREDENTIALS=user:password"
        )


def _trial_name(varied: dict[str, Any], options: RunOptions) -> str:
    """Name a trial by what varies and a hash: `sspo-atanlog-tau_neg=0.3-tau_pos=0.2-seed0-1a2b3c4d`.

    The hash is of the options that are not at their defaults, so that new options of later versions do not change it.
    """
    words = [*options.objective.words]
    words += [f"{_short(key)}={value}" for key, value in varied.items() if key not in NAMED and _is_short(value)]
    own = options.model_dump(mode="json", exclude_defaults=True, exclude=OF_THE_MACHINE)
    digest = xxhash.xxh3_64_hexdigest(json.dumps(own, sort_keys=True).encode())
    name = "-".join([*words, f"seed{options.seed}", digest[:8]])
    return re.sub(r"[^\w.=-]+", "_", name)


def _state(run: RunFolder) -> str:
    state = run.status.get("state", "")
    return "killed" if state == "running" and not run.is_being_written() else state


def _short(option: str) -> str:
    """Return the last part of an option's name: `tau_neg` of `objective.tau_neg`."""
    return option.rpartition(".")[2]


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict | list)
