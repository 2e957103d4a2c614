"""Paired comparisons of configurations on the same problems."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sspo_cli.errors import UserError, quantity
from sspo_cli.report.choices import against_best_and_baseline
from sspo_cli.report.frame import Line, split
from sspo_cli.report.groups import grouped
from sspo_cli.report.records import answers
from sspo_cli.report.table import Cell, Table
from sspo_cli.statistics import differences_are_equal, holm, mcnemar, paired_bootstrap, sign_flip
from sspo_cli.tracking.measurement import MEASUREMENT

EQUAL_DIFFERENCES = (
    "every problem has the same difference, so a bootstrap interval would have no width. The interval is exact instead: by "
    "Clopper and Pearson, at most the share 1 − 0.025^(1/n) of problems has another difference, at worst −1 or 1."
)
Problem = tuple[str, str]  # its id and gold answer


@dataclass(frozen=True, eq=False)
class SolvedShares:
    """The results of a line on a benchmark.

    seeds    number of seeds
    answers  answers to each problem: samples times seeds
    solved   share of right answers over all samples and seeds, by problem
    """

    line: Line
    seeds: int
    answers: int
    solved: dict[Problem, float]

    @property
    def share(self) -> float:
        return math.fsum(self.solved.values()) / len(self.solved)


def paired_table(table_rows: pd.DataFrame, notes: Sequence[str]) -> Table | None:
    """Compare each line with the best configuration of its setting and with the strongest baseline, by benchmark.

    notes  added below the table's own notes

    Returns None if there are no two lines to compare. A note names each line whose file of answers is damaged.
    """
    rows: list[dict[str, Any]] = []
    not_compared: list[str] = []
    for (setting, column), measured in split(table_rows, "setting", "column"):
        results = []
        for line, of_line in split(measured, "line"):
            try:
                results.append(_solved_shares(line, of_line))
            except (LookupError, UserError) as error:
                not_compared.append(f"{line.label} in {setting} is not compared on {column}: {error}.")
        measurement: dict[str, Any] = {name: measured[name].iloc[0] for name in MEASUREMENT}
        for result, reference, role in against_best_and_baseline(results, _share, lambda result: result.line.method):
            labels = {"configuration": result.line.label, "against": reference.line.label, "role": role}
            if result.solved.keys() != reference.solved.keys():
                names = f"{result.line.label} and {reference.line.label} in {setting}"
                not_compared.append(f"{names} are not compared on {column}: they answered different problems.")
                continue
            compared = {**labels, **measurement, **_compare(result, reference)}
            rows.append({"setting": setting, "column": column, **compared})
    if not rows:
        return None
    frame = pd.DataFrame(rows).assign(p_holm=holm([row["p"] for row in rows]))
    headings = ["Configuration", "Against", "Problems", "Difference", "p", "p (Holm)"]
    title = "Paired comparisons with the best configuration and with the strongest baseline"
    return Table("paired", title, frame, headings, _body(frame), [*_explained(frame), *not_compared, *notes])


def p_text(value: float) -> str:
    """Format a p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _share(result: SolvedShares) -> float:
    return result.share


def _body(frame: pd.DataFrame) -> list[list[Cell] | str]:
    body: list[list[Cell] | str] = []
    several = frame["setting"].nunique() > 1
    for (setting, column), compared in split(frame, "setting", "column"):
        body.append(f"{column}, {setting}" if several else column)
        body += [
            [
                Cell(row["configuration"]),
                Cell(f"{row['against']} ({row['role']})"),
                Cell(str(row["n"]), number=row["n"]),
                Cell(f"{row['difference']:+.1f}", f"[{row['low']:+.1f}, {row['high']:+.1f}]", number=row["difference"]),
                *(Cell(p_text(row[name]), number=row[name]) for name in ("p", "p_holm")),
            ]
            for row in compared.to_dict("records")
        ]
    return body


def _explained(frame: pd.DataFrame) -> list[str]:
    exact = frame[frame["interval"] == "exact"]
    pairs = ", ".join(
        f"{row['configuration']} − {row['against']} ({row['column']})" for row in exact.to_dict("records")
    )
    return [
        "Lines, benchmarks and runs are those of table 1.",
        "Difference in points of Pass@1, on the same problems, with its 95 % percentile interval of a paired bootstrap over "
        "problems (9,999 resamples).",
        *([f"Intervals of {pairs}: {EQUAL_DIFFERENCES}"] if pairs else []),
        f"p, two-sided: {' and '.join(sorted(set(frame['test'])))}. The problems are the random sample; seeds are averaged "
        "within a problem, so this p says nothing about further seeds; for these, see the table `seeds`.",
        f"p (Holm): adjusted for the number of comparisons in this table, {len(frame)}.",
        "The best and the strongest baseline (GRPO, GSPO, GMPO or SAPO) were chosen by these same numbers, which favours "
        "them slightly.",
    ]


def _solved_shares(line: Line, measured: pd.DataFrame) -> SolvedShares:
    """Average over the seeds. Raises LookupError unless there is an answer for each problem and sample."""
    seeds = [_solved(evaluation) for evaluation in measured.to_dict("records")]
    if len({frozenset(solved) for solved in seeds}) > 1:
        raise LookupError("its seeds answered different problems")
    solved = {problem: sum(seed[problem] for seed in seeds) / len(seeds) for problem in seeds[0]}
    return SolvedShares(line, len(seeds), len(seeds) * measured["samples"].iloc[0], solved)


def _solved(evaluation: dict[Any, Any]) -> dict[Problem, float]:
    """Compute the share of samples that solve each problem. Raises LookupError in the same cases as `_solved_shares`."""
    n, samples, benchmark = evaluation["n"], evaluation["samples"], evaluation["benchmark"]
    # Older versions did not write these conditions into each row, because they were equal in the whole file.
    conditions = {
        "samples": samples,
        "temperature": evaluation["temperature"],
        "max_new_tokens": evaluation["max_new_tokens"],
        "template": evaluation["prompt"],
    }
    identity = evaluation.get("identity")
    rows = [
        row
        for row in answers(evaluation["source"], benchmark)
        if row["step"] == evaluation["step"]
        and row.get("identity") == identity
        and all(row.get(name, value) == value for name, value in conditions.items())
    ]
    verdicts = grouped(rows, lambda row: (str(row["id"]), str(row["gold"])))
    if len(verdicts) != n or {len(of_problem) for of_problem in verdicts.values()} != {samples}:
        needed = f"{quantity(samples, 'answer')} to each of {quantity(n, 'problem')}"
        raise LookupError(f"`{evaluation['source'].path}/eval/{benchmark}.jsonl` does not hold {needed}")
    return {problem: sum(row["correct"] for row in rows) / len(rows) for problem, rows in verdicts.items()}


def _compare(result: SolvedShares, reference: SolvedShares) -> dict[str, Any]:
    """Compute shares and difference in %, its interval and its p-value."""
    a, b = ([each.solved[problem] for problem in result.solved] for each in (result, reference))
    difference, low, high = paired_bootstrap(a, b)
    if result.answers == reference.answers == 1:
        p, test = mcnemar([x == 1 for x in a], [y == 1 for y in b]), "McNemar's exact test (one seed, one sample)"
    else:
        scale = math.lcm(result.answers, reference.answers)
        p = sign_flip([round(scale * (x - y)) for x, y in zip(a, b, strict=True)])
        test = "an exact sign-flip permutation test over problems, on each problem's mean over seeds and samples"
    return {
        "seeds": result.seeds,
        "seeds_against": reference.seeds,
        "value": 100 * result.share,
        "value_against": 100 * reference.share,
        "difference": 100 * difference,
        "low": 100 * low,
        "high": 100 * high,
        "interval": "exact" if differences_are_equal(a, b) else "bootstrap",
        "p": p,
        "test": test,
    }
