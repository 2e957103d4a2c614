"""The data of a report: groups of runs, measured models, and one frame of all their evaluations."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sspo_cli.errors import UserError
from sspo_cli.named_runs import find_runs
from sspo_cli.report.frame import evaluation_frame
from sspo_cli.report.groups import RunGroup, effects_of, group_runs
from sspo_cli.report.records import BareModel, RunRecord, Select, read_record


@dataclass(frozen=True)
class Collection:
    """The data of a report. `left_out` has a sentence for each omitted folder; `select` is the checkpoint for the tables."""

    groups: list[RunGroup] = field(default_factory=list)
    bare_models: list[BareModel] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    select: Select = "last"

    @property
    def runs(self) -> list[RunRecord]:
        return [run for group in self.groups for run in group.runs]

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(group.setting for group in self.groups))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Frame of all evaluations, made by `evaluation_frame`. Every table and figure of scores is computed from it."""
        return evaluation_frame(self.groups, self.bare_models, self.select)


def collect(paths: Sequence[Path], select: Select = "last") -> Collection:
    """Read every run and every measured model in these folders and their subfolders, and group the runs.

    Damaged folders are omitted. If several runs have the same options and seed, only the most complete run is used. Raises
    UserError if there is neither a run nor a measured model.
    """
    bare_models: list[BareModel] = []
    left_out: list[str] = []
    by_options: dict[Any, dict[int, RunRecord]] = defaultdict(dict)
    for path in find_runs(paths):
        try:
            record = read_record(path)
        except UserError as error:  # the remaining folders are still read
            left_out.append(f"`{path}`: {error}")
            continue
        if isinstance(record, BareModel):
            bare_models.append(record)
            continue
        effects = effects_of(record)
        seeds = by_options[tuple(sorted((key, str(value)) for key, value in effects.items()))]
        if rival := seeds.get(record.seed):
            # Keep the finished run, or else the longer run. If both are equal, keep the first run.
            record, worse = sorted((rival, record), key=lambda run: (run.finished, run.step), reverse=True)
            left_out.append(f"`{worse.path}`: the same options and seed as `{record.path}`")
        seeds[record.seed] = record
    if not by_options and not bare_models:
        looked = ", ".join(map(str, paths))
        raise UserError("; ".join([f"no readable runs in {looked}", *left_out]))
    groups = group_runs([[runs[seed] for seed in sorted(runs)] for runs in by_options.values()])
    return Collection(groups, bare_models, left_out, select)
