"""The paper's tables as printed: Pass@1 in %, from paper.json. They are for reference and are not targets."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd

from sspo_cli.report.frame import BASE, gain
from sspo_cli.report.groups import BASELINES, grouped, method_name
from sspo_cli.report.table import NOTHING, Cell, Table, ranks_and_marks
from sspo_cli.statistics import attainable

# The paper's headings by benchmark, with the number of problems. The paper does not state this number for CodeAct.
BENCHMARKS = {
    "gsm8k": ("GSM8K", 1319),
    "math500": ("MATH-500", 500),
    "aime24": ("AIME 2024", 30),
    "aime25": ("AIME 2025", 30),
    "codeact": ("CodeAct", None),
}
SAMPLES = 32  # the mean of this many samples per problem explains many cells that a single sample cannot give
GAIN = "Δ Avg"


@dataclass(frozen=True)
class PaperRow:
    """A line of a table of the paper: cells by benchmark, and the mean gain over the base if it is printed."""

    table: int
    title: str
    model: str
    method: str
    gate: str
    cells: Mapping[str, float]
    printed_gain: float | None

    @property
    def label(self) -> str:
        return BASE if self.method == BASE else method_name(self.method)


def _read_rows() -> Iterator[PaperRow]:
    text = resources.files("sspo_cli.report").joinpath("paper.json").read_text(encoding="utf-8")
    for table in json.loads(text):
        for model, rows in table["models"].items():
            for row in rows:
                cells = dict(zip(table["columns"], row, strict=True))
                method, gate, printed_gain = cells.pop("method"), cells.pop("gate"), cells.pop(GAIN, None)
                yield PaperRow(table["table"], table["title"], model, method, gate, cells, printed_gain)


PAPER = tuple(_read_rows())


def printed(model: str, method: str, gate: str, benchmark: str) -> float | None:
    """Return the paper's number for a model, method, gate and benchmark; an empty method means the base."""
    for row in PAPER:
        if (row.model, row.method, row.gate) == (model, method or BASE, gate) and benchmark in row.cells:
            return row.cells[benchmark]
    return None


def paper_tables() -> list[Table]:
    """Make the paper's tables; check Δ Avg and the possible percentages against the cells themselves."""
    return [_table(rows) for rows in grouped(PAPER, lambda row: row.table).values()]


def attainability(benchmark: str, percent: float) -> tuple[bool | None, bool | None]:
    """Report whether one greedy answer to each problem can give this percentage, and whether 32 samples of each can.

    Both are None if the number of problems is unknown.
    """
    n = BENCHMARKS[benchmark][1]
    return (None, None) if n is None else (attainable(percent, n), attainable(percent, n, SAMPLES))


def _table(table_rows: list[PaperRow]) -> Table:
    number, title, benchmarks = table_rows[0].table, table_rows[0].title, list(table_rows[0].cells)
    with_printed = any(row.printed_gain is not None for row in table_rows)
    records: list[dict[str, Any]] = []
    body: list[list[Cell] | str] = []
    for model, rows in grouped(table_rows, lambda row: row.model).items():
        gains = [None if row.method == BASE else gain(row.cells, rows[0].cells) for row in rows]
        columns = {name: [row.cells[name] for row in rows] for name in benchmarks} | {GAIN: gains}
        baselines = [row.method in BASELINES for row in rows]
        marked = {name: ranks_and_marks(values, baselines) for name, values in columns.items()}
        body.append(model)
        for place, row in enumerate(rows):
            line = [Cell(row.label), Cell(row.gate)]
            for name, values in columns.items():
                value, (rank, marks) = values[place], marked[name][place]
                cell, numbers = _cell(row, name, value, marks)
                line.append(cell)
                if value is not None:
                    fields = {"model": model, "method": row.method, "gate": row.gate, "column": name, "value": value}
                    records.append({**fields, **numbers, "rank": rank, "mark": ", ".join(sorted(marks))})
            if with_printed:
                line.append(Cell(NOTHING if row.printed_gain is None else f"{row.printed_gain:+.1f}"))
            body.append(line)
    headings = ["Method", "Gate", *(BENCHMARKS[name][0] for name in benchmarks), GAIN]
    headings += ["Δ Avg as printed"] if with_printed else []
    frame = pd.DataFrame(records)
    title = f"{title}: for reference, never a target"
    return Table(f"paper{number}", title, frame, headings, body, _notes(number, records, with_printed))


def _cell(row: PaperRow, column: str, value: float | None, marks: frozenset[str]) -> tuple[Cell, dict[str, Any]]:
    """Return a cell, and its further columns in the files."""
    if column == GAIN:
        cell = Cell(NOTHING) if value is None else Cell(f"{value:+.1f}", marks=marks, number=value)
        return cell, {"printed": row.printed_gain}
    greedy, sampled = attainability(column, row.cells[column])
    numbers = {"n": BENCHMARKS[column][1], "from_greedy": greedy, "from_32_samples": sampled}
    return Cell(f"{value:.1f}{'†' if greedy is False else ''}", marks=marks, number=value), numbers


def _notes(number: int, records: list[dict[str, Any]], with_printed: bool) -> list[str]:
    notes = [f"{GAIN} is computed from the cells, over all columns."]
    if with_printed:
        wrong = [
            f"{method_name(record['method'])} {record['gate']}: {record['printed']:+.1f} printed, "
            f"{record['value']:+.1f} from its cells"
            for record in records
            if record["column"] == GAIN and record["printed"] not in (None, round(record["value"], 1))
        ]
        verdict = (
            f"does not follow from the cells of {'; '.join(wrong)}" if wrong else "follows from the cells everywhere"
        )
        notes.append(f"The printed {GAIN} {verdict}.")
    sizes = ", ".join(f"{heading} {n:,}" for heading, n in BENCHMARKS.values() if n)
    counts = []
    for name, column in grouped(records, lambda record: record["column"]).items():
        if impossible := sum(record.get("from_greedy") is False for record in column):
            counts.append(f"{impossible} of {len(column)} on {BENCHMARKS[name][0]}")
    flagged = f": {', '.join(counts)}" if counts else "; there is none here"
    notes.append(
        f"† no whole number of solved problems gives this cell with one greedy answer to each problem ({sizes}){flagged}. As the "
        f"mean of {SAMPLES} samples of each problem every decimal is possible, so such an evaluation cannot be checked this way."
    )
    if any(record["column"] == "codeact" for record in records):
        notes.append("The number of problems of CodeAct is not known, so its cells are not checked.")
    if number == 2:
        notes.append("SSPO is read as its atanlog gate, which the paper chooses.")
        notes.append('The paper itself calls this table "a calibrated transfer study rather than completed training".')
    return notes
