"""The tables of a report."""

from collections import Counter

import pandas as pd

from sspo_cli.report.choices import best_configurations
from sspo_cli.report.collect import Collection
from sspo_cli.report.frame import TRAINED, rows_of, table_rows
from sspo_cli.report.table import Table
from sspo_cli.report.tables.configurations import configurations_table
from sspo_cli.report.tables.paired import paired_table
from sspo_cli.report.tables.paper import paper_tables
from sspo_cli.report.tables.pass_at_1 import method_table, variant_table
from sspo_cli.report.tables.runs import runs_table
from sspo_cli.report.tables.seeds import against_noise, seeds_table, verdict
from sspo_cli.report.tables.telemetry import telemetry_table
from sspo_cli.tasks.contamination import Overlap

__all__ = ["tables"]


def tables(collection: Collection, *, paper: bool = False) -> list[Table]:
    """Make every table for which there is data, in this order; with `paper` also `paper1` and `paper2`.

    table1          by setting, method and gate: Pass@1 of each benchmark, and its mean gain over the base
    table2          models by methods by benchmarks, if there are several settings
    seeds           each configuration of table1 against the best one and the strongest baseline, seed by seed
    paired          the same comparison on the same problems
    configurations  every configuration, with those of table1 marked
    telemetry       speed and memory of the runs on several ranks, on GPUs, or with a sampler that weights are passed to
    runs            every run

    Raises UserError for a damaged file of answers.
    """
    frame, groups, select = collection.frame, collection.groups, collection.select
    chosen, choices = best_configurations(groups, select)
    rows = table_rows(frame, chosen)
    made: list[Table | None] = []
    if len(rows):
        notes = [*_selection(collection, rows), *choices, *_overlaps(rows)]
        noise = against_noise(rows_of(frame, chosen), chosen)
        several = rows.loc[rows["kind"] == TRAINED, "line"].nunique() > 1
        made.append(variant_table(rows, [verdict(noise, chosen)] if several else [], notes, paper))
        if rows["setting"].nunique() > 1:
            of_methods, choices = best_configurations(groups, select, lambda group: (group.setting, group.method))
            method_rows = table_rows(frame, of_methods)
            method_notes = [*_selection(collection, method_rows), *choices]
            made.append(method_table(method_rows, method_notes, paper))
        made.append(seeds_table(noise))
        made.append(paired_table(rows, notes))
        made.append(configurations_table(collection, chosen))
    made.append(telemetry_table(collection))
    if collection.runs:
        made.append(runs_table(collection))
    return [table for table in made if table is not None] + (paper_tables() if paper else [])


def _selection(collection: Collection, rows: pd.DataFrame) -> list[str]:
    if not (rows["kind"] == TRAINED).any():
        return []
    if collection.select == "last":
        return ["Trained rows: finished runs, measured after their last step."]
    return [
        "Trained rows: finished runs, each at its best step by Pass@1 on validation problems, which were held out of the "
        "training tasks and are in no benchmark."
    ]


def _overlaps(rows: pd.DataFrame) -> list[str]:
    """Describe the overlap of training tasks with benchmarks, and in how many runs of the table it was left out."""
    runs: Counter[str] = Counter()
    for run in rows.loc[rows["kind"] == TRAINED, "source"].unique():
        left_out = run.options.evaluation.decontaminate
        runs.update({Overlap(**overlap).sentence(left_out) for overlap in run.data.get("overlaps", [])})
    return [f"{sentence} ({count} run{'s' * (count > 1)})." for sentence, count in runs.items()]
