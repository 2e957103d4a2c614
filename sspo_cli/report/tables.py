"""The report's tables, from what was collected."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pandas as pd

from sspo_cli.report.configurations import configurations_table
from sspo_cli.report.measurements import (
    BASE,
    MEASUREMENT,
    TRAINED,
    Line,
    best_configurations,
    by,
    gain,
    lines,
    pass_at_1,
)
from sspo_cli.report.paired import paired_table
from sspo_cli.report.paper import paper_tables, printed
from sspo_cli.report.run_table import runs_table
from sspo_cli.report.runs import BASELINES, Collection, Select, method_name, short_names
from sspo_cli.report.seeds import against_noise, seeds_table, verdict
from sspo_cli.report.table import NOTHING, Cell, Table, marks_of

GAIN = "Δ Avg"
PERCENT = ("sd", "low", "high", "lowest_seed", "highest_seed")
Record = dict[Hashable, Any]


def tables(collection: Collection, *, select: Select = "last", paper: bool = False) -> list[Table]:
    """Those that there is something for, in this order, and with `paper` `paper1` and `paper2`.

    table1          by setting, method and gate: Pass@1 of each benchmark, and its mean gain over the base
    table2          models by methods by benchmarks, where there are several settings
    seeds           each configuration of table1 against the best one and the strongest baseline, seed by seed
    paired          the same on the same problems
    configurations  every configuration, and which of them are in table1
    runs            every run

    Raises UserError where a file of answers is damaged.
    """
    of_table1, choices = best_configurations(collection.groups, select)
    shown = lines(collection, of_table1, select)
    found: list[Table | None] = []
    if shown:
        noise = against_noise(of_table1, select)
        notes = [*_selection(shown, select), *choices]
        compared = [verdict(noise, of_table1)] if sum(line.kind == TRAINED for line in shown) > 1 else []
        found.append(_table1(collection, shown, compared, notes, paper))
        if len(by(shown, lambda line: line.setting)) > 1:
            chosen, choices = best_configurations(
                collection.groups, select, lambda group: (group.setting, group.method)
            )
            of_methods = lines(collection, chosen, select)
            found.append(_table2(collection, of_methods, [*_selection(of_methods, select), *choices], paper))
        found.append(seeds_table(noise))
        found.append(paired_table(shown, notes))
        found.append(configurations_table(collection, of_table1, select))
    if collection.runs:
        found.append(runs_table(collection, select))
    return [table for table in found if table is not None] + (paper_tables() if paper else [])


def _table1(
    collection: Collection, shown: Sequence[Line], compared: Sequence[str], notes: Sequence[str], paper: bool
) -> Table:
    cells = _cells(shown, paper)
    frame = _marked(pd.concat([cells, _gains(shown, cells)], ignore_index=True), shown)
    lead: dict[str, Callable[[Line], str]] = {
        "Method": lambda line: method_name(line.method) if line.kind == TRAINED else line.label,
        "Gate": lambda line: line.gate,
        "Configuration": lambda line: line.configuration,
        "Seeds": _seeds,
    }
    if not any(group.differs for group in collection.groups):
        del lead["Configuration"]
    settings = by(shown, lambda line: line.setting)
    title = "Pass@1 (%) by method and gate" + (f": {shown[0].setting}" if len(settings) == 1 else "")
    about = [
        *compared,
        "Cells are Pass@1 in %: where a row has several seeds, their mean ± their standard deviation (of a sample). In brackets "
        "the 95 % Wilson interval for the benchmark's n problems and the mean number solved; it is not narrowed by the number "
        "of seeds, which answered the same problems.",
        f"{GAIN} is the mean over the benchmarks of cell − base, in points, computed from the cells as printed.",
        *_gain_notes(shown, frame),
    ]
    return _grid("table1", title, shown, frame, lead, True, [*about, *_about(collection, shown, frame), *notes])


def _table2(collection: Collection, shown: Sequence[Line], notes: Sequence[str], paper: bool) -> Table:
    frame = _marked(_cells(shown, paper), shown)
    about = [
        "Cells are Pass@1 in %: where a row has several seeds, their mean ± their standard deviation (of a sample). The 95 % "
        "Wilson intervals are in table 1 and in the CSV.",
    ]
    lead: dict[str, Callable[[Line], str]] = {"Method": lambda line: line.label}
    models = len({line.model for line in shown})
    title = f"Pass@1 (%) by {'model' if models > 1 else 'setting'} and method"
    return _grid("table2", title, shown, frame, lead, False, [*about, *_about(collection, shown, frame), *notes])


def _cells(shown: Sequence[Line], paper: bool) -> pd.DataFrame:
    """A row for each line and benchmark that it was measured on, in %; `paper` is what the paper prints there."""
    frame = pass_at_1(shown)
    frame["value"] = 100 * frame.pop("pass_at_1")
    frame[[*PERCENT]] *= 100
    frame["paper"] = [
        printed(shown[place].model, shown[place].method, shown[place].gate, benchmark) if paper else None
        for place, benchmark in zip(frame["line"], frame["benchmark"], strict=True)
    ]
    return frame.astype({"paper": float})


def _gains(shown: Sequence[Line], cells: pd.DataFrame) -> pd.DataFrame:
    """Rows of Δ Avg, for each trained line and bare model that has a cell wherever its base has one."""
    rows = []
    for places in by(range(len(shown)), lambda place: shown[place].setting).values():
        base = next((place for place in places if shown[place].kind == BASE), None)
        for place in places:
            if base is not None and place != base:
                ours, papers = (
                    gain(_row_of(cells, place, name), _row_of(cells, base, name)) for name in ("value", "paper")
                )
                rows.append({"line": place, "column": GAIN, "value": ours, "paper": papers})
    frame = pd.DataFrame(rows, columns=["line", "column", "value", "paper"])
    return frame.astype({"value": float, "paper": float}).dropna(subset="value")


def _row_of(cells: pd.DataFrame, place: int, name: str) -> dict[str, float]:
    """A line's numbers by column, where it has them."""
    own = cells[(cells["line"] == place) & cells[name].notna()]
    return dict(zip(own["column"], own[name], strict=True))


def _gain_notes(shown: Sequence[Line], frame: pd.DataFrame) -> list[str]:
    """What Δ Avg leaves out, and where it is missing."""
    notes = []
    columns = {place: set(same["column"]) for place, same in frame.groupby("line")}
    for setting, places in by(range(len(shown)), lambda place: shown[place].setting).items():
        base = next((place for place in places if shown[place].kind == BASE), None)
        if base is None:
            continue
        everywhere = set().union(*(columns[place] for place in places)) - {GAIN}
        if unknown := sorted(everywhere - columns[base]):
            notes.append(f"{GAIN} leaves out {', '.join(unknown)}, on which the base of {setting} was not measured.")
        for place in places:
            if place != base and (lacking := sorted(columns[base] - columns[place])):
                notes.append(f"{shown[place].label} in {setting} has no {GAIN}: it lacks {', '.join(lacking)}.")
    return notes


def _marked(frame: pd.DataFrame, shown: Sequence[Line]) -> pd.DataFrame:
    """With rank and marks within setting and column."""
    rank: dict[Hashable, Any] = {}
    mark: dict[Hashable, Any] = {}
    frame = frame.assign(setting=[shown[place].setting for place in frame["line"]])
    for _, same in frame.groupby(["setting", "column"], sort=False):
        baselines = [shown[place].method in BASELINES for place in same["line"]]
        for index, (its_rank, marks) in zip(same.index, marks_of(list(same["value"]), baselines), strict=True):
            rank[index], mark[index] = its_rank, marks
    return frame.assign(rank=[rank[index] for index in frame.index], mark=[mark[index] for index in frame.index])


def _grid(
    name: str,
    title: str,
    shown: Sequence[Line],
    frame: pd.DataFrame,
    lead: dict[str, Callable[[Line], str]],
    intervals: bool,
    notes: list[str],
) -> Table:
    """Lines by the columns of `frame`, with a block for each setting, after columns of text about the line."""
    columns = list(frame["column"].unique())
    beside = set(frame.loc[frame["paper"].notna(), "column"])
    records = {(row["line"], row["column"]): row for row in frame.to_dict("records")}
    blocks = by(range(len(shown)), lambda place: shown[place].setting)
    headings = [*lead]
    for column in columns:
        headings += [column, f"paper: {column}"] if column in beside else [column]
    body: list[list[Cell] | str] = []
    for setting, places in blocks.items():
        body += [setting] if len(blocks) > 1 else []
        for place in places:
            cells = [Cell(text(shown[place])) for text in lead.values()]
            for column in columns:
                record = records.get((place, column))
                cells.append(_cell(record, intervals))
                if column in beside:
                    cells.append(_paper_cell(record))
            body.append(cells)
    if beside:
        notes = [
            *notes,
            "Columns `paper`: what the paper prints for that model, method and gate; a reference, not a target.",
        ]
    return Table(name, title, _for_file(frame, shown, bool(beside)), headings, body, notes)


def _cell(record: Record | None, interval: bool) -> Cell:
    if record is None:
        return Cell(NOTHING)
    value, marks = record["value"], record["mark"]
    if record["column"] == GAIN:
        return Cell(f"{round(value, 1) + 0.0:+.1f}", marks=marks, number=value)  # + 0.0: no minus before a zero
    deviation = f" ± {record['sd']:.1f}" if record["sd"] >= 0 else ""  # NaN for one seed
    extra = f"[{record['low']:.1f}, {record['high']:.1f}]" if interval else ""
    return Cell(f"{value:.1f}{deviation}", extra, marks, value)


def _paper_cell(record: Record | None) -> Cell:
    if record is None or pd.isna(record["paper"]):
        return Cell(NOTHING)
    sign = "+" if record["column"] == GAIN else ""
    return Cell(f"{record['paper']:{sign}.1f}", number=record["paper"])


def _for_file(frame: pd.DataFrame, shown: Sequence[Line], paper: bool) -> pd.DataFrame:
    about = pd.DataFrame(
        {
            "setting": line.setting,
            "model": line.model,
            "kind": line.kind,
            "method": line.method,
            "gate": line.gate,
            "configuration": line.configuration,
        }
        for line in (shown[place] for place in frame["line"])
    )
    numbers = frame.assign(mark=[", ".join(sorted(marks)) for marks in frame["mark"]])
    numbers = numbers.astype(dict.fromkeys(("n", "samples", "max_new_tokens", "rank"), "Int64"))
    names = ["column", *MEASUREMENT, "seeds", "value", *PERCENT, "rank", "mark", *(["paper"] if paper else [])]
    return pd.concat([about, numbers[names].reset_index(drop=True)], axis=1)


def _about(collection: Collection, shown: Sequence[Line], frame: pd.DataFrame) -> list[str]:
    """What the base is, what the marks mean, what every column was measured with, which runs are in it."""
    notes = [
        "Best cell bold, second best underlined, strongest baseline (of GRPO, GSPO, GMPO, SAPO) italic; cells that print alike "
        "share a mark.",
    ]
    if any(line.kind == BASE for line in shown):
        starts = by(collection.groups, lambda group: group.setting)
        steps = {setting: groups[0].runs[0].options.cold_start.steps for setting, groups in starts.items()}
        after = " or ".join(f"{n} supervised steps" if n else "no cold start" for n in sorted(set(steps.values())))
        notes.append(f"base: the evaluation before the first step of RL and after the cold start ({after}).")
    if any(line.kind not in (BASE, TRAINED) for line in shown):
        notes.append("Rows `by sspo eval`: that model as it is, without a cold start and without RL.")
    return [*notes, *_conditions(frame), *_which_runs(shown), *_fewer_seeds(shown, frame)]


def _conditions(frame: pd.DataFrame) -> list[str]:
    """What every column was measured with, in a sentence each."""
    sentences = []
    for row in frame[frame["column"] != GAIN].drop_duplicates("column").to_dict("records"):
        decoding = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']}"
        samples = "1 sample" if row["samples"] == 1 else f"mean of {int(row['samples'])} samples"
        sentences.append(
            f"{row['column']}: {row['split']} split, n = {int(row['n'])} problems, {samples}, {decoding}, "
            f"at most {_token_limit(row)} new tokens, prompt `{row['prompt']}`."
        )
    return sentences


def _token_limit(row: Record) -> str:
    return "an unknown number of" if pd.isna(row["max_new_tokens"]) else str(int(row["max_new_tokens"]))


def _which_runs(shown: Sequence[Line]) -> list[str]:
    """By line: how many seeds, and the folders."""
    sources = {id(line): list(dict.fromkeys(m.source.path for m in line.measured)) for line in shown}
    folder, short = short_names([path for found in sources.values() for path in found])
    sentences = []
    for line in shown:
        names = ", ".join(f"`{short[path]}`" for path in sources[id(line)])
        seeds = f"seed{'s' if ',' in _seeds(line) else ''} {_seeds(line)}: " if _seeds(line) else ""
        sentences.append(f"{line.label}: {seeds}{names}")
    return [f"Runs below `{folder}`: {'; '.join(sentences)}."]


def _fewer_seeds(shown: Sequence[Line], frame: pd.DataFrame) -> list[str]:
    """The cells that are not over all seeds of their line."""
    return [
        f"{line.label} in {line.setting}: {row['column']} is of seed {row['seeds']} only."
        for row in frame[frame["column"] != GAIN].to_dict("records")
        if (line := shown[row["line"]]).kind == TRAINED and row["seeds"] != _seeds(line)
    ]


def _seeds(line: Line) -> str:
    """Of a trained line; a base is the same for all seeds."""
    seeds = {measured.seed for measured in line.measured} if line.kind == TRAINED else set()
    return ", ".join(str(seed) for seed in sorted(seed for seed in seeds if seed is not None))


def _selection(shown: Sequence[Line], select: Select) -> list[str]:
    if all(line.kind != TRAINED for line in shown):
        return []
    if select == "last":
        return ["Trained rows: finished runs, measured after their last step."]
    return [
        "Trained rows: finished runs, each at its best step by Pass@1 on validation problems, which were held out of the "
        "training tasks and are in no benchmark."
    ]
