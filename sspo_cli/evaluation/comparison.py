"""The output of `sspo eval`: scores by target and benchmark, differences from the first target, conditions."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sspo_cli.errors import quantity
from sspo_cli.statistics import differences_are_equal, mcnemar, paired_bootstrap
from sspo_cli.tracking.measurement import IDENTITY, columns, differences
from sspo_cli.tracking.text import truncated

COLUMNS = ("benchmark", "split", "n", "prompt", *IDENTITY)  # other conditions are printed below the tables
RECORDED = " (recorded)"
WIDE = 240  # characters; the width of tables if standard output is not a terminal


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The result of a target on a benchmark.

    model     name of the target's model or of the model that it was trained from; None for the embedded model
    summary   row of `summary.json`
    rows      rows of `<benchmark>.jsonl`, one for each problem and sample
    partial   file of finished problems, which is to be removed; None if there is no such file
    recorded  True if an earlier command recorded the result
    """

    target: str
    model: str | None
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    partial: Path | None
    recorded: bool = False

    @property
    def benchmark(self) -> str:
        return self.summary["benchmark"]

    def shares(self) -> dict[tuple[str, str], float]:
        """Return the share of correct samples of each problem. Keys are (id, gold), because two files may use the same ids."""
        correct: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for row in self.rows:
            correct[row["id"], row["gold"]].append(row["correct"])
        return {problem: sum(samples) / len(samples) for problem, samples in correct.items()}


def print_comparison(results: Sequence[EvalResult]) -> None:
    """Print scores, differences and conditions on standard output."""
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False, emoji=False)
    benchmarks = list(dict.fromkeys(result.benchmark for result in results))
    console.print("Pass@1 in % [95 % interval], and the share of answers truncated at the token limit")
    console.print(_pass_at_1(results))
    for benchmark in benchmarks:
        of_benchmark = [result for result in results if result.benchmark == benchmark]
        first = of_benchmark[0]
        if any(result.summary["samples"] > 1 for result in of_benchmark):
            console.print(f"{benchmark}: unbiased pass@k in %")
            console.print(_pass_at_k(of_benchmark))
        if len(of_benchmark) > 1:
            console.print(
                f"{benchmark}: difference from {first.target} in points [95 %, paired bootstrap]", soft_wrap=True
            )
            console.print(_differences(of_benchmark))
            for sentence in _remarks(of_benchmark):
                console.print(f"  {sentence}", soft_wrap=True)
    for result in results:
        console.print(_conditions(result), soft_wrap=True)
        if result.summary["truncated"] > len(result.rows) / 2:
            console.print(
                f"  most completions were truncated at {quantity(result.summary['max_new_tokens'], 'token')}; raise "
                "--max-new-tokens"
            )


def _pass_at_1(results: Sequence[EvalResult]) -> Table:
    """Return a table with a row for each target and a column for each distinct measurement of a benchmark."""
    headings = columns([result.summary for result in results], [result.model for result in results], COLUMNS)
    cells = {
        (result.target, heading): _share(result.summary) + (RECORDED if result.recorded else "")
        for result, heading in zip(results, headings, strict=True)
    }
    table = Table("", *dict.fromkeys(headings))
    for target in dict.fromkeys(result.target for result in results):
        table.add_row(target, *(cells.get((target, heading), "–") for heading in dict.fromkeys(headings)))
    return table


def _pass_at_k(results: Sequence[EvalResult]) -> Table:
    tries = sorted({int(k) for result in results for k in result.summary["pass_at_k"]})
    table = Table("k", *map(str, tries))
    for result in results:
        shares = (result.summary["pass_at_k"].get(str(k)) for k in tries)
        table.add_row(result.target, *("–" if share is None else f"{100 * share:.1f}" for share in shares))
    return table


def _differences(results: Sequence[EvalResult]) -> Table:
    """Return a table of paired differences from the first result, and of McNemar p-values if there is one sample per problem."""
    first, *later = results
    base = first.shares()
    table = Table("", "points", "exact paired p")
    for result in later:
        if differently := _differently(result, first):
            table.add_row(result.target, f"measured {' and '.join(differently)}", "–")
            continue
        shares = result.shares()
        a, b = [shares[problem] for problem in base], list(base.values())
        difference, low, high = (100 * value for value in paired_bootstrap(a, b))
        once = first.summary["samples"] == result.summary["samples"] == 1
        p = f"{mcnemar([share == 1 for share in a], [share == 1 for share in b]):.2g}" if once else "–"
        table.add_row(result.target, f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]", p)
    return table


def _remarks(results: Sequence[EvalResult]) -> Iterator[str]:
    """Yield sentences on chat templates that differ from the first result's, and on intervals that are not bootstrapped."""
    first, *later = results
    base = first.shares()
    for result in later:
        if _differently(result, first):
            continue
        if result.summary["rendered"] != first.summary["rendered"]:
            yield f"{result.target} is prompted through another chat template or tokenizer than {first.target}"
        shares = result.shares()
        if differences_are_equal([shares[problem] for problem in base], [*base.values()]):
            yield (
                f"{result.target} and {first.target} differ by the same amount on every problem, so a bootstrap interval would "
                "have no width; the interval is exact instead (Clopper-Pearson limit for the share of problems with another "
                "difference)"
            )


def _differently(result: EvalResult, first: EvalResult) -> list[str]:
    """Describe how the measurements of a result and the first result differ; return an empty list if both are comparable."""
    return differences(result.summary, first.summary, same_model=result.model == first.model)


def _share(summary: dict[str, Any]) -> str:
    pass_at_1, low, high = (100 * summary[key] for key in ("pass_at_1", "low", "high"))
    return f"{pass_at_1:.1f} [{low:.1f}, {high:.1f}], {truncated(summary)}"


def _conditions(result: EvalResult) -> str:
    """Describe a measurement: `one, arithmetic (test): 512 problems, greedy, at most 64 tokens, prompt plain, checkpoint …`."""
    summary = result.summary
    how = "greedy"
    if summary["temperature"]:
        how = f"{quantity(summary['samples'], 'sample')} at temperature {summary['temperature']:g}, seed {summary['seed']}"
    trained_on = f", {n} of them trained on" if (n := summary["trained_on"]) else ""
    problems, limit = quantity(summary["n"], "problem"), quantity(summary["max_new_tokens"], "token")
    return (
        f"{result.target}, {result.benchmark} ({summary['split']}): {problems}{trained_on}, {how}, at most {limit}, "
        f"prompt {summary['prompt']}, checkpoint {summary['checkpoint']}; sampled by "
        f"{summary['engine'].replace(',', ', ')}, problems {summary['problems']}"
        + (f" from {summary['path']}" if summary["path"] else "")
    )
