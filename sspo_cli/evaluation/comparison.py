"""What `sspo eval` prints: targets × benchmarks, how the targets differ from the first one, and how it was measured."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sspo_cli.statistics import mcnemar, paired_bootstrap

WIDE = 240  # characters, where no terminal says how many it has


@dataclass(frozen=True, slots=True)
class Measured:
    """A target on a benchmark.

    summary  as in `summary.json`
    rows     one for each problem and sample, as in `<benchmark>.jsonl`
    partial  the file of what was done, to be removed; None where nothing is recorded
    """

    target: str
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    partial: Path | None

    @property
    def benchmark(self) -> str:
        return self.summary["benchmark"]

    def shares(self) -> dict[tuple[str, str], float]:
        """Share of right samples by problem, its id and gold answer: two files may give other problems the same ids."""
        correct: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for row in self.rows:
            correct[row["id"], row["gold"]].append(row["correct"])
        return {problem: sum(samples) / len(samples) for problem, samples in correct.items()}


def print_comparison(measured: Sequence[Measured]) -> None:
    """Tables and their conditions, on standard output."""
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, emoji=False)
    benchmarks = list(dict.fromkeys(each.benchmark for each in measured))
    console.print("Pass@1 in % [95 % interval]")
    console.print(_pass_at_1(measured, benchmarks))
    for benchmark in benchmarks:
        of_it = [each for each in measured if each.benchmark == benchmark]
        if any(each.summary["samples"] > 1 for each in of_it):
            console.print(f"{benchmark}: unbiased pass@k in %")
            console.print(_pass_at_k(of_it))
        if len(of_it) > 1:
            console.print(f"{benchmark}: points more than {of_it[0].target} [95 %, paired bootstrap]", soft_wrap=True)
            console.print(_differences(of_it))
    for each in measured:
        console.print(_conditions(each), soft_wrap=True)
        if each.summary["truncated"] > len(each.rows) / 2:
            console.print(
                f"  most completions were cut at {each.summary['max_new_tokens']} tokens; raise --max-new-tokens"
            )


def _pass_at_1(measured: Sequence[Measured], benchmarks: Sequence[str]) -> Table:
    cells = {(each.target, each.benchmark): _share(each.summary) for each in measured}
    table = Table("", *benchmarks)
    for target in dict.fromkeys(each.target for each in measured):
        table.add_row(target, *(cells.get((target, benchmark), "–") for benchmark in benchmarks))
    return table


def _pass_at_k(measured: Sequence[Measured]) -> Table:
    tries = sorted({int(k) for each in measured for k in each.summary["pass_at_k"]})
    table = Table("k", *map(str, tries))
    for each in measured:
        shares = (each.summary["pass_at_k"].get(str(k)) for k in tries)
        table.add_row(each.target, *("–" if share is None else f"{100 * share:.1f}" for share in shares))
    return table


def _differences(measured: Sequence[Measured]) -> Table:
    """Of each target from the first one, problem by problem; by McNemar's test too where a problem is solved or not."""
    first, *others = measured
    base = first.shares()
    table = Table("", "points", "exact paired p")
    for other in others:
        own = other.shares()
        if own.keys() != base.keys():
            table.add_row(other.target, "measured on other problems", "–")
            continue
        a, b = [own[problem] for problem in base], list(base.values())
        difference, low, high = (100 * value for value in paired_bootstrap(a, b))
        once = first.summary["samples"] == other.summary["samples"] == 1
        p = f"{mcnemar([share == 1 for share in a], [share == 1 for share in b]):.2g}" if once else "–"
        table.add_row(other.target, f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", p)
    return table


def _share(summary: dict[str, Any]) -> str:
    pass_at_1, low, high = (100 * summary[key] for key in ("pass_at_1", "low", "high"))
    return f"{pass_at_1:.1f} [{low:.1f}, {high:.1f}]"


def _conditions(measured: Measured) -> str:
    """`one, arithmetic (test): 512 problems, greedy, at most 64 tokens, prompt plain, checkpoint step-160`."""
    summary = measured.summary
    how = "greedy"
    if summary["temperature"]:
        samples = "1 sample" if summary["samples"] == 1 else f"{summary['samples']} samples"
        how = f"{samples} at temperature {summary['temperature']:g}, seed {summary['seed']}"
    return (
        f"{measured.target}, {measured.benchmark} ({summary['split']}): {summary['n']} problems, {how}, at most "
        f"{summary['max_new_tokens']} tokens, prompt {summary['prompt']}, checkpoint {summary['checkpoint']}"
    )
