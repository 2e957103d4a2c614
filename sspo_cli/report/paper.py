"""The paper's tables, for reference: Pass@1 in %, as printed. Nothing here is a target."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sspo_cli.report.measurements import BASE, by, gain
from sspo_cli.report.runs import BASELINES, method_name
from sspo_cli.report.table import NOTHING, Cell, Table, marks_of
from sspo_cli.statistics import attainable

# What the paper's headings mean here, with the number of problems; of CodeAct's test the paper does not give it.
BENCHMARKS = {
    "gsm8k": ("GSM8K", 1319),
    "math500": ("MATH-500", 500),
    "aime24": ("AIME 2024", 30),
    "aime25": ("AIME 2025", 30),
    "codeact": ("CodeAct", None),
}
SAMPLES = 32  # of which many cells that are no share of the problems may be the mean
GAIN = "Δ Avg"


@dataclass(frozen=True)
class PaperRow:
    """A line of a table of the paper: cells by benchmark, and the mean gain over the base where it is printed."""

    table: int
    model: str
    method: str
    gate: str
    cells: Mapping[str, float]
    printed_gain: float | None = None

    @property
    def label(self) -> str:
        return BASE if self.method == BASE else method_name(self.method)


def _table1() -> list[PaperRow]:
    rows = (
        (BASE, "", 77.9, 56.6, 10.0, None),
        ("grpo", "clip", 84.5, 64.2, 10.0, 4.7),
        ("gmpo", "clip", 88.8, 65.0, 13.3, 7.5),
        ("sapo", "sigmoid", 82.8, 58.6, 10.0, 2.3),
        ("sspo", "expsig", 89.2, 64.8, 16.7, 8.7),
        ("sspo", "expatan", 89.6, 65.8, 16.7, 9.2),
        ("sspo", "gumbel", 88.9, 63.8, 16.7, 8.3),
        ("sspo", "siglog", 88.9, 64.8, 16.7, 8.8),
        ("sspo", "atanlog", 91.6, 66.6, 20.0, 11.2),
    )
    return [
        PaperRow(1, "Qwen2.5-7B-Instruct", method, gate, {"gsm8k": gsm8k, "math500": m500, "aime25": a25}, printed)
        for method, gate, gsm8k, m500, a25, printed in rows
    ]


def _table2() -> list[PaperRow]:
    methods = ((BASE, ""), ("grpo", "clip"), ("gspo", "clip"), ("sapo", "sigmoid"), ("sspo", "atanlog"))
    models = {
        "Qwen3-8B": (
            (17.8, 13.2, 56.8, 18.4),
            (23.9, 18.7, 61.2, 19.3),
            (26.1, 20.8, 63.8, 24.0),
            (25.4, 21.5, 62.9, 22.4),
            (28.3, 22.6, 64.6, 27.0),
        ),
        "Qwen3-14B": (
            (21.4, 15.8, 60.7, 21.8),
            (29.6, 22.8, 66.5, 26.5),
            (32.8, 25.4, 69.8, 30.4),
            (31.4, 26.3, 68.9, 28.6),
            (35.1, 27.9, 69.5, 29.6),
        ),
        "Qwen3-30B-A3B": (
            (24.8, 18.5, 63.1, 23.6),
            (33.7, 25.0, 69.4, 17.0),
            (37.9, 28.1, 73.6, 28.9),
            (36.8, 29.4, 73.1, 24.0),
            (40.6, 29.0, 74.2, 32.9),
        ),
    }
    benchmarks = ("aime24", "aime25", "math500", "codeact")
    return [
        PaperRow(2, model, method, gate, dict(zip(benchmarks, cells, strict=True)))
        for model, lines in models.items()
        for (method, gate), cells in zip(methods, lines, strict=True)
    ]


PAPER = [*_table1(), *_table2()]


def printed(model: str, method: str, gate: str, benchmark: str) -> float | None:
    """What the paper prints for a model, method, gate and benchmark; with an empty method, for the base."""
    for row in PAPER:
        if (row.model, row.method, row.gate) == (model, method or BASE, gate) and benchmark in row.cells:
            return row.cells[benchmark]
    return None


def paper_tables() -> list[Table]:
    """The paper's Tables 1 and 2 with what follows from their own cells: Δ Avg, and whether n problems can give them."""
    titles = {1: "The paper's Table 1, μ = 2", 2: "The paper's Table 2, μ = 4"}
    return [_table(number, f"{title}: for reference, never a target") for number, title in titles.items()]


def _table(number: int, title: str) -> Table:
    blocks = by((row for row in PAPER if row.table == number), lambda row: row.model)
    benchmarks = list(next(iter(blocks.values()))[0].cells)
    with_printed = any(row.printed_gain is not None for rows in blocks.values() for row in rows)
    records: list[dict[str, Any]] = []
    body: list[list[Cell] | str] = []
    wrong = []
    for model, rows in blocks.items():
        baselines = [row.method in BASELINES for row in rows]
        gains = [None if row.method == BASE else gain(row.cells, rows[0].cells) for row in rows]
        columns = {name: [row.cells[name] for row in rows] for name in benchmarks}
        marked = {name: marks_of(values, baselines) for name, values in (columns | {GAIN: gains}).items()}
        body.append(model)
        for place, row in enumerate(rows):
            line = [Cell(row.label), Cell(row.gate)]
            about = {"model": model, "method": row.method, "gate": row.gate}
            for name in benchmarks:
                value, (rank, marks) = row.cells[name], marked[name][place]
                greedy, sampled = attainability(name, value)
                line.append(Cell(f"{value:.1f}{'†' if greedy is False else ''}", marks=marks, number=value))
                numbers = {"value": value, "n": BENCHMARKS[name][1], "from_greedy": greedy, "from_32_samples": sampled}
                records.append({**about, "column": name, **numbers, "rank": rank, "mark": ", ".join(sorted(marks))})
            computed, (rank, marks) = gains[place], marked[GAIN][place]
            line.append(Cell(NOTHING) if computed is None else Cell(f"{computed:+.1f}", marks=marks, number=computed))
            if computed is not None:
                numbers = {"value": computed, "printed": row.printed_gain}
                records.append({**about, "column": GAIN, **numbers, "rank": rank, "mark": ", ".join(sorted(marks))})
            if with_printed:
                line.append(Cell(NOTHING if row.printed_gain is None else f"{row.printed_gain:+.1f}"))
                if row.printed_gain is not None and round(computed or 0.0, 1) != row.printed_gain:
                    wrong.append(
                        f"{row.label} {row.gate}: {row.printed_gain:+.1f} printed, {computed:+.1f} from its cells"
                    )
            body.append(line)
    headings = ["Method", "Gate", *(BENCHMARKS[name][0] for name in benchmarks), GAIN]
    headings += ["Δ Avg as printed"] if with_printed else []
    return Table(
        f"paper{number}", title, pd.DataFrame(records), headings, body, _notes(number, records, wrong, with_printed)
    )


def attainability(benchmark: str, percent: float) -> tuple[bool | None, bool | None]:
    """Whether greedy answers to the benchmark's problems can give this percentage, and whether 32 samples of each can; None
    where the number of problems is not known."""
    n = BENCHMARKS[benchmark][1]
    return (None, None) if n is None else (attainable(percent, n), attainable(percent, n, SAMPLES))


def _notes(number: int, records: list[dict[str, Any]], wrong: list[str], with_printed: bool) -> list[str]:
    cells = [record for record in records if record["column"] != GAIN]
    notes = [f"{GAIN} is computed from the cells, over all columns."]
    if with_printed:
        verdict = (
            f"does not follow from the cells of {'; '.join(wrong)}" if wrong else "follows from the cells everywhere"
        )
        notes.append(f"The printed {GAIN} {verdict}.")
    sizes = ", ".join(f"{heading} {n:,}" for heading, n in BENCHMARKS.values() if n)
    counts = []
    for name, same in by(cells, lambda record: record["column"]).items():
        if any(record["from_greedy"] is False for record in same):
            impossible = sum(record["from_greedy"] is False for record in same)
            counts.append(f"{impossible} of {len(same)} on {BENCHMARKS[name][0]}")
    flagged = f": {', '.join(counts)}" if counts else "; there is none here"
    notes.append(
        f"† no whole number of solved problems gives this cell with one greedy answer each ({sizes}){flagged}. As the mean of "
        f"{SAMPLES} samples of each problem every decimal is possible, so that such an evaluation cannot be checked like this."
    )
    if any(record["n"] is None for record in cells):
        notes.append("Of CodeAct the number of problems is not known, so its cells are not checked.")
    if number == 2:
        notes.append("SSPO is read as its atanlog gate, which the paper chooses.")
        notes.append('The paper itself calls this table "a calibrated transfer study rather than completed training".')
    return notes
