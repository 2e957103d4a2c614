"""Tables 1 and 2: Pass@1 by setting, method, gate and benchmark."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from sspo_cli.errors import quantity
from sspo_cli.report.frame import BASE, TRAINED, Line, gain, over_seeds, split
from sspo_cli.report.groups import BASELINES, grouped, method_name
from sspo_cli.report.records import PART, lineages, short_names
from sspo_cli.report.table import NOTHING, Cell, Table, ranks_and_marks
from sspo_cli.report.tables.paper import printed
from sspo_cli.tracking.measurement import EPISODE, MEASUREMENT, has_identity

GAIN = "Δ Avg"
CUT = "% cut is the share of answers truncated at the token limit; cells that do not state it have none."
PERCENT = ("sd", "low", "high", "lowest_seed", "highest_seed", "truncated")
ABOUT = ("setting", "model", "kind", "method", "gate", "configuration")  # columns that describe a line, in the files
Record = dict[Hashable, Any]
Lead = Mapping[str, Callable[[Line], str]]  # columns of text about the line, by heading


def variant_table(rows: pd.DataFrame, compared: Sequence[str], notes: Sequence[str], paper: bool) -> Table:
    """Make table 1 from `table_rows`: a line for each method and gate, with intervals and the mean gain over the base."""
    cells = _cells(rows, paper)
    cells = _marked(pd.concat([cells, _gains(cells)], ignore_index=True))
    lead: dict[str, Callable[[Line], str]] = {
        "Method": lambda line: method_name(line.method) if line.kind == TRAINED else line.label,
        "Gate": lambda line: line.gate,
        "Configuration": lambda line: line.configuration,
        "Seeds": _seeds_by_line(rows).__getitem__,
    }
    if not any(line.group.differs for line in rows["line"] if line.group):
        del lead["Configuration"]
    settings = rows["setting"].unique()
    title = "Pass@1 (%) by method and gate" + (f": {settings[0]}" if len(settings) == 1 else "")
    explained = [
        *compared,
        "Cells are Pass@1 in %; for several seeds, mean ± standard deviation (of a sample). In brackets is the 95 % Wilson "
        "interval for the benchmark's n problems and the mean number solved. More seeds do not narrow it, because all seeds "
        "answered the same problems.",
        *_cut(cells),
        f"{GAIN} is the mean over the benchmarks of cell − base, in points, computed from the cells as printed; cell and base "
        "were measured on the same problems, with the same prompt, answer check and sampler.",
        *_missing_gains(cells),
    ]
    return _grid("table1", title, cells, lead, True, [*explained, *_explained(rows, cells), *notes])


def method_table(rows: pd.DataFrame, notes: Sequence[str], paper: bool) -> Table:
    """Make table 2 from `table_rows`: a line for each method, a block for each setting."""
    cells = _marked(_cells(rows, paper))
    explained = [
        "Cells are Pass@1 in %; for several seeds, mean ± standard deviation (of a sample). The 95 % Wilson intervals are in "
        "table 1 and in the CSV.",
        *_cut(cells),
    ]
    models = len({line.model for line in rows["line"]})
    title = f"Pass@1 (%) by {'model' if models > 1 else 'setting'} and method"
    lead: Lead = {"Method": lambda line: line.label}
    return _grid("table2", title, cells, lead, False, [*explained, *_explained(rows, cells), *notes])


def _cells(rows: pd.DataFrame, paper: bool) -> pd.DataFrame:
    """Return a row for each pair of line and benchmark, with Pass@1 in %. The column `paper` has the number in the paper."""
    cells = over_seeds(rows, by=["line", "setting"])
    cells["value"] = 100 * cells.pop("pass_at_1")
    cells[[*PERCENT]] *= 100
    cells["paper"] = [
        printed(line.model, line.method, line.gate, benchmark) if paper else None
        for line, benchmark in zip(cells["line"], cells["benchmark"], strict=True)
    ]
    return cells.astype({"paper": float})


def _gains(cells: pd.DataFrame) -> pd.DataFrame:
    """Return rows of Δ Avg for each trained line and bare model that has a cell in all of its columns."""
    rows: list[dict[str, Any]] = []
    for setting, base, lines in _with_base(cells):
        columns = _averaged(cells, base, lines)
        for line in lines:
            ours, papers = (
                gain(_numbers(cells, line, name), _numbers(cells, base, name, columns)) for name in ("value", "paper")
            )
            rows.append({"line": line, "setting": setting, "column": GAIN, "value": ours, "paper": papers})
    gains = pd.DataFrame(rows, columns=["line", "setting", "column", "value", "paper"])
    return gains.astype({"value": float, "paper": float}).dropna(subset="value")


def _averaged(cells: pd.DataFrame, base: Line, lines: Sequence[Line]) -> list[str]:
    """Return the columns of the base that Δ Avg averages: one for each benchmark that half of the lines have.

    If a benchmark has several measurements, the one of most trained lines is used; if tied, the one with most problems. A
    single run with another measurement therefore does not remove Δ Avg from other runs.
    """
    trained = [line for line in lines if line.kind == TRAINED] or list(lines)
    shared = cells[cells["line"].isin(trained)].groupby("column")["line"].nunique()
    of_base = cells[(cells["line"] == base) & (cells["column"] != GAIN)]
    usual: dict[str, str] = {}
    for benchmark, measured in split(of_base, "benchmark"):
        ranked = measured.assign(shared=measured["column"].map(shared).fillna(0))
        usual[benchmark] = str(ranked.sort_values(["shared", "n"], ascending=False, kind="stable")["column"].iloc[0])
    counts = {column: int(shared.get(column, 0)) for column in usual.values()}
    enough = min(len(trained) / 2, max(counts.values(), default=0))
    return [column for column, count in counts.items() if count and count >= enough]


def _missing_gains(cells: pd.DataFrame) -> list[str]:
    """List the columns that Δ Avg leaves out, and the lines without Δ Avg."""
    notes = []
    columns = {line: set(of_line["column"]) - {GAIN} for line, of_line in split(cells, "line")}
    for setting, base, lines in _with_base(cells):
        averaged = set(_averaged(cells, base, lines))
        everywhere = columns[base].union(*(columns[line] for line in lines))
        if unknown := sorted(everywhere - columns[base]):
            notes.append(f"{GAIN} leaves out {', '.join(unknown)}, on which the base of {setting} was not measured.")
        if rare := sorted(columns[base] - averaged):
            notes.append(
                f"{GAIN} in {setting} is over {', '.join(sorted(averaged)) or 'nothing'}; it leaves out {', '.join(rare)}, on "
                "which most rows were not measured."
            )
        for line in lines:
            if lacking := sorted(averaged - columns[line]):
                notes.append(f"{line.label} in {setting} has no {GAIN}: it lacks {', '.join(lacking)}.")
    return notes


def _with_base(cells: pd.DataFrame) -> Iterable[tuple[str, Line, list[Line]]]:
    """Yield each setting whose base was measured, with the base and the other lines."""
    for setting, lines in grouped(cells["line"].unique(), lambda line: line.setting).items():
        if base := next((line for line in lines if line.kind == BASE), None):
            yield setting, base, [line for line in lines if line is not base]


def _numbers(cells: pd.DataFrame, line: Line, name: str, columns: Sequence[str] | None = None) -> dict[str, float]:
    """Return a line's numbers by column, for `columns`, or for all columns if `columns` is None."""
    of_line = cells[(cells["line"] == line) & cells[name].notna()]
    if columns is not None:
        of_line = of_line[of_line["column"].isin(columns)]
    return dict(zip(of_line["column"], of_line[name], strict=True))


def _marked(cells: pd.DataFrame) -> pd.DataFrame:
    """Add rank and marks, within setting and column."""
    ranks: dict[Any, int | None] = {}
    marks: dict[Any, frozenset[str]] = {}
    for _, column in split(cells, "setting", "column"):
        baselines = [line.method in BASELINES for line in column["line"]]
        for index, ranked in zip(column.index, ranks_and_marks(list(column["value"]), baselines), strict=True):
            ranks[index], marks[index] = ranked
    return cells.assign(rank=cells.index.map(ranks.get), mark=cells.index.map(marks.get))


def _grid(name: str, title: str, cells: pd.DataFrame, lead: Lead, intervals: bool, notes: list[str]) -> Table:
    """Arrange lines by columns after the columns of text, with a block for each setting."""
    columns = list(cells["column"].unique())
    with_paper = set(cells.loc[cells["paper"].notna(), "column"])
    records = {(row["line"], row["column"]): row for row in cells.to_dict("records")}
    blocks = grouped(cells["line"].unique(), lambda line: line.setting)
    headings = [*lead]
    for column in columns:
        headings += [column, f"paper: {column}"] if column in with_paper else [column]
    body: list[list[Cell] | str] = []
    for setting, lines in blocks.items():
        body += [setting] if len(blocks) > 1 else []
        for line in lines:
            row = [Cell(text(line)) for text in lead.values()]
            for column in columns:
                record = records.get((line, column))
                row += (
                    [_cell(record, intervals), _paper_cell(record)]
                    if column in with_paper
                    else [_cell(record, intervals)]
                )
            body.append(row)
    if with_paper:
        note = "Columns `paper`: what the paper prints for that model, method and gate; a reference, not a target."
        notes = [*notes, note]
    return Table(name, title, _for_file(cells, bool(with_paper)), headings, body, notes)


def _cell(record: Record | None, interval: bool) -> Cell:
    if record is None:
        return Cell(NOTHING)
    value, marks = record["value"], record["mark"]
    if record["column"] == GAIN:
        return Cell(f"{round(value, 1) + 0.0:+.1f}", marks=marks, number=value)  # + 0.0: no minus before a zero
    deviation = f" ± {record['sd']:.1f}" if record["sd"] >= 0 else ""  # NaN for one seed
    extra = [f"[{record['low']:.1f}, {record['high']:.1f}]"] if interval else []
    extra += [f"{record['truncated']:.1f} % cut"] if record["truncated"] > 0 else []
    return Cell(f"{value:.1f}{deviation}", ", ".join(extra), marks, value)


def _paper_cell(record: Record | None) -> Cell:
    if record is None or pd.isna(record["paper"]):
        return Cell(NOTHING)
    sign = "+" if record["column"] == GAIN else ""
    return Cell(f"{record['paper']:{sign}.1f}", number=record["paper"])


def _for_file(cells: pd.DataFrame, paper: bool) -> pd.DataFrame:
    line_columns = pd.DataFrame([[getattr(line, name) for name in ABOUT] for line in cells["line"]], columns=[*ABOUT])
    numbers = cells.assign(mark=[", ".join(sorted(marks)) for marks in cells["mark"]])
    numbers = numbers.astype(dict.fromkeys(("n", "samples", "max_new_tokens", *EPISODE, "rank"), "Int64"))
    names = ["column", *MEASUREMENT, "seeds", "value", *PERCENT, "rank", "mark", *(["paper"] if paper else [])]
    return pd.concat([line_columns, numbers[names].reset_index(drop=True)], axis=1)


def _explained(rows: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """Explain the base, the marks, the conditions of every column, and the runs of every line."""
    marks = (
        "The best cell is bold, the second best underlined, the strongest baseline (of GRPO, GSPO, GMPO, SAPO) italic. Cells "
        "with equal printed values share a mark; if all cells of a column are equal, none is marked."
    )
    notes = [marks] if any(cells["mark"]) else []
    kinds = set(rows["kind"])
    if BASE in kinds:
        sources = rows.loc[rows["kind"] == BASE, "source"].unique()
        forks = [run.options.fork is not None for run in sources]
        steps = sorted({run.options.cold_start.steps for run, fork in zip(sources, forks, strict=True) if not fork})
        after = " or ".join(quantity(n, "supervised step") if n else "no cold start" for n in steps)
        begun = [f"after the cold start ({after})"] if after else []
        begun += ["at the checkpoint that a run was forked from"] if any(forks) else []
        notes.append(f"base: the evaluation before the first step of RL and {' or '.join(begun)}.")
    if kinds - {BASE, TRAINED}:
        notes.append("Rows `by sspo eval`: the model itself, without a cold start and without RL.")
    trained = rows.loc[rows["kind"] == TRAINED, "source"].unique()
    return [*notes, *_conditions(cells), _which_runs(rows), *lineages(trained), *_fewer_seeds(rows, cells)]


def _cut(cells: pd.DataFrame) -> list[str]:
    """Explain the share of truncated answers if there are any. Name rows of older versions whose share is unknown."""
    of_benchmarks = cells[cells["column"] != GAIN]
    unknown = sorted(set(of_benchmarks.loc[of_benchmarks["truncated"].isna(), "column"]))
    notes = [CUT] if (of_benchmarks["truncated"] > 0).any() else []
    return [*notes, f"The share of truncated answers is not known for {', '.join(unknown)}."] if unknown else notes


def _conditions(cells: pd.DataFrame) -> list[str]:
    """Describe the conditions of every column in a sentence."""
    sentences = []
    for row in cells[cells["column"] != GAIN].drop_duplicates("column").to_dict("records"):
        decoding = "greedy" if row["temperature"] == 0 else f"temperature {row['temperature']}"
        samples = "1 sample" if row["samples"] == 1 else f"mean of {int(row['samples'])} samples"
        limit = "an unknown number of" if pd.isna(row["max_new_tokens"]) else str(int(row["max_new_tokens"]))
        conditions = f"at most {limit} new token{'s' * (limit != '1')}, prompt `{row['prompt']}`"
        if not pd.isna(row["turns"]):
            turns, proposals = quantity(int(row["turns"]), "turn"), quantity(int(row["proposals"]), "proposal")
            conditions = (
                f"solved rate, the share of episodes in which a proposal was accepted within at most {turns} and {proposals}, "
                f"of at most {limit} new tokens each and {int(row['max_tokens'])} together"
            )
        sentences.append(
            f"{row['column']}: {row['split']} split, n = {quantity(int(row['n']), 'problem')}, {samples}, {decoding}, "
            f"{conditions}{_identity(row)}."
        )
    return [*sentences, *_about_code_acting({str(name).partition(PART)[0] for name in cells["benchmark"].dropna()})]


def _about_code_acting(benchmarks: set[str]) -> list[str]:
    """Describe what the numbers of code-acting do not measure."""
    if not benchmarks & {"codeact", "mint", "wtq"}:
        return []
    absent = (
        "Not measured, and not part of any number: HumanEval, MBPP, HotpotQA and ALFWorld of MINT, and APPS of CodeActInstruct, "
        "because their tests, tools or simulators are not available."
    )
    if "codeact" not in benchmarks:
        return [absent]
    return [
        "codeact: the held-out tasks of CodeActInstruct whose gold answers are known, MATH and WikiTableQuestions. The paper "
        "names neither the tasks of its CodeAct column nor turns, proposals and checker, so the two are not comparable.",
        absent,
    ]


def _identity(row: Record) -> str:
    if not has_identity(row):
        return "; recorded without fingerprints, so it is unknown whether all rows answered the same problems"
    return f"; sampled by {row['engine']}, fingerprint of the problems and golds {row['problems']}"


def _which_runs(rows: pd.DataFrame) -> str:
    """List the seeds and the folders of each line."""
    sources = {line: [source.path for source in of_line["source"].unique()] for line, of_line in split(rows, "line")}
    folder, short = short_names([path for paths in sources.values() for path in paths])
    sentences = []
    for line, seeds in _seeds_by_line(rows).items():
        names = ", ".join(f"`{short[path]}`" for path in sources[line])
        prefix = f"seed{'s' if ',' in seeds else ''} {seeds}: " if seeds else ""
        sentences.append(f"{line.label}: {prefix}{names}")
    return f"Runs below `{folder}`: {'; '.join(sentences)}."


def _fewer_seeds(rows: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
    """List the cells that do not average all seeds of their line."""
    seeds = _seeds_by_line(rows)
    return [
        f"{line.label} in {line.setting}: {row['column']} was measured for seed {row['seeds']} only."
        for row in cells[cells["column"] != GAIN].to_dict("records")
        if (line := row["line"]).kind == TRAINED and row["seeds"] != seeds[line]
    ]


def _seeds_by_line(rows: pd.DataFrame) -> dict[Line, str]:
    """List the seeds of trained lines; a base has none, because it is the same for all seeds."""
    return {
        line: ", ".join(map(str, sorted(set(of_line["seed"])))) if line.kind == TRAINED else ""
        for line, of_line in split(rows, "line")
    }
