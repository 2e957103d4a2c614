"""Two configurations on the same problems: how far apart they are, and whether that may be chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sspo_cli.report.measurements import MEASUREMENT, TRAINED, Line, Measured, by, headed
from sspo_cli.report.runs import BASELINES, answers
from sspo_cli.report.table import Cell, Table
from sspo_cli.statistics import holm, mcnemar, paired_bootstrap, sign_flip


@dataclass(frozen=True)
class Answered:
    """What a line solved of a benchmark.

    solved       by problem, its id and gold answer: the share of all samples of all seeds
    answers      to each problem: samples times seeds
    """

    line: Line
    seeds: int
    answers: int
    solved: dict[tuple[str, str], float]

    @property
    def share(self) -> float:
        return math.fsum(self.solved.values()) / len(self.solved)


def paired_table(lines: Sequence[Line], notes: Sequence[str]) -> Table | None:
    """Each line against the best configuration of its setting and against the strongest baseline, by benchmark; under it
    `notes` and its own. None where there are no two lines to compare.

    Raises UserError where a file of answers is damaged.
    """
    rows: list[dict[str, Any]] = []
    apart: list[str] = []
    for (setting, column), same in by(headed(lines), lambda item: (item[0].setting, item[1])).items():
        answered = []
        for line, _, measured in same:
            try:
                answered.append(_answered(line, measured))
            except LookupError as error:
                apart.append(f"{line.label} in {setting} is not compared on {column}: {error}.")
        measurement = {name: same[0][2][0].evaluation[name] for name in MEASUREMENT}
        references = _references(answered)
        for reference, role in references:
            for one in answered:
                if one is reference or (
                    reference is not references[-1][0] and one is references[-1][0]
                ):  # the mirror of a row
                    continue
                if one.solved.keys() != reference.solved.keys():
                    names = f"{one.line.label} and {reference.line.label} in {setting}"
                    apart.append(f"{names} are not compared on {column}: they answered different problems.")
                    continue
                about = {"configuration": one.line.label, "against": reference.line.label, "role": role}
                rows.append({"setting": setting, "column": column, **about, **measurement, **_compare(one, reference)})
    if not rows:
        return None
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    frame = pd.DataFrame(rows)
    headings = ["Configuration", "Against", "Problems", "Difference", "p", "p (Holm)"]
    shown: list[list[Cell] | str] = []
    for (setting, column), compared in by(rows, lambda row: (row["setting"], row["column"])).items():
        shown.append(f"{column}, {setting}" if frame["setting"].nunique() > 1 else column)
        shown += [
            [
                Cell(row["configuration"]),
                Cell(f"{row['against']} ({row['role']})"),
                Cell(str(row["n"]), number=row["n"]),
                Cell(f"{row['difference']:+.1f}", f"[{row['low']:+.1f}, {row['high']:+.1f}]", number=row["difference"]),
                *(Cell(p_text(row[name]), number=row[name]) for name in ("p", "p_holm")),
            ]
            for row in compared
        ]
    own = [
        "Lines, benchmarks and runs are those of table 1.",
        "Difference in points of Pass@1, on the same problems, with its 95 % percentile interval of a paired bootstrap over "
        "problems (9,999 resamples).",
        f"p, two-sided: {' and '.join(sorted(set(frame['test'])))}. Problems are what is drawn at random; seeds are averaged "
        "within a problem, so the p says nothing about further seeds; the table of differences against the noise of seeds does.",
        f"p (Holm): adjusted for the number of comparisons in this table, {len(frame)}.",
        "The best and the strongest baseline (GRPO, GSPO, GMPO or SAPO) were picked by these same numbers, which flatters "
        "them a little.",
    ]
    title = "Paired comparisons with the best configuration and with the strongest baseline"
    return Table("paired", title, frame, headings, shown, [*own, *apart, *notes])


def _answered(line: Line, measured: Sequence[Measured]) -> Answered:
    """Raises LookupError, with the reason, where there is not an answer for each problem and sample."""
    seeds = [_solved(one) for one in measured]
    if len({frozenset(solved) for solved in seeds}) > 1:
        raise LookupError("its seeds answered different problems")
    solved = {problem: sum(seed[problem] for seed in seeds) / len(seeds) for problem in seeds[0]}
    return Answered(line, len(seeds), len(seeds) * measured[0].evaluation["samples"], solved)


def _solved(measured: Measured) -> dict[tuple[str, str], float]:
    """By problem the share of samples that solve it. Raises LookupError like `_answered`."""
    evaluation = measured.evaluation
    # What older versions did not write into each row was the same for the whole file.
    settings = {
        "samples": evaluation["samples"],
        "temperature": evaluation["temperature"],
        "max_new_tokens": evaluation["max_new_tokens"],
        "template": evaluation["prompt"],
    }
    verdicts = by(
        (
            row
            for row in answers(measured.source, evaluation["benchmark"])
            if row["step"] == evaluation["step"]
            and settings == {name: row.get(name, settings[name]) for name in settings}
        ),
        lambda row: (str(row["id"]), str(row["gold"])),
    )
    if len(verdicts) != evaluation["n"] or {len(rows) for rows in verdicts.values()} != {evaluation["samples"]}:
        raise LookupError(
            f"`{measured.source.path}/eval/{evaluation['benchmark']}.jsonl` does not hold {evaluation['samples']} "
            f"answer(s) to each of {evaluation['n']} problems"
        )
    return {problem: sum(row["correct"] for row in rows) / len(rows) for problem, rows in verdicts.items()}


def _references(answered: Sequence[Answered]) -> list[tuple[Answered, str]]:
    """The best of the trained, and the strongest baseline; one where they are the same."""
    trained = [one for one in answered if one.line.kind == TRAINED]
    best = max(trained, key=lambda one: one.share, default=None)
    baseline = max((one for one in trained if one.line.method in BASELINES), key=lambda one: one.share, default=None)
    if best is None:
        return []
    if baseline is None or baseline is best:
        return [(best, "best" if baseline is None else "best, strongest baseline")]
    return [(best, "best"), (baseline, "strongest baseline")]


def _compare(one: Answered, other: Answered) -> dict[str, Any]:
    """Shares and difference in %, its interval and p."""
    a, b = ([each.solved[problem] for problem in one.solved] for each in (one, other))
    difference, low, high = paired_bootstrap(a, b)
    if one.answers == other.answers == 1:
        p, test = mcnemar([x == 1 for x in a], [y == 1 for y in b]), "McNemar's exact test (one seed, one sample)"
    else:
        scale = math.lcm(one.answers, other.answers)
        p = sign_flip([round(scale * (x - y)) for x, y in zip(a, b, strict=True)])
        test = "an exact sign-flip permutation test over problems, on each problem's mean over seeds and samples"
    return {
        "seeds": one.seeds,
        "seeds_against": other.seeds,
        "value": 100 * one.share,
        "value_against": 100 * other.share,
        "difference": 100 * difference,
        "low": 100 * low,
        "high": 100 * high,
        "p": p,
        "test": test,
    }


def p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
