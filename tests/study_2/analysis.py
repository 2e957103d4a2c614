"""Compute the outcomes of the second study (docs/study.md) from the records of its runs.

Scores are in %, differences in points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd

from sspo_cli.statistics import holm, paired_bootstrap, paired_t, sign_flip_of_seeds

from .ledger import Ledger, Row
from .plan import FINAL_SEEDS, MU, RATE, SELECTION, STALE, Results, chosen_settings, setting_of, validation

TEST = "chains"  # the benchmark of the finals
OURS = "sspo atanlog"
BASELINES = ("grpo clip", "gspo clip", "gmpo clip", "sapo sigmoid", "cispo cispo")  # baselines of the primary contrast
OTHER_GATES = ("sspo expatan", "sspo siglog")
METHODS = (*BASELINES, OURS, *OTHER_GATES)
MUS = (2, 4, 8)
WORKS = 5.0  # a rate works if its score is at most this many points below the score of the method's best rate


@dataclass(frozen=True, slots=True)
class Contrast:
    """A paired difference between two methods over seeds.

    mean, low, high  mean difference and its 95 % interval by Student's t over seeds
    effect           mean over the standard deviation of the differences
    p                exact two-sided p-value over all flips of signs
    higher           number of seeds with a positive difference
    problems         95 % interval of the mean difference over resampled problems, for these seeds; None for areas
    """

    mean: float
    low: float
    high: float
    effect: float
    p: float
    higher: int
    problems: tuple[float, float] | None = None


@dataclass(frozen=True)
class Study:
    """Finished runs of all stages and their metrics by optimizer step."""

    rows: Sequence[Row]
    metrics: pd.DataFrame

    @classmethod
    def load(cls, folder: Path) -> "Study":
        """Read the kept files; metrics get the columns stage, method and mu."""
        rows = Ledger(folder).rows
        parts = [pd.read_parquet(path).astype({"run": str}) for path in sorted(folder.glob("metrics-*.parquet"))]
        about = pd.DataFrame(
            [{"run": row.name, "stage": row.stage, "method": row.method, "mu": row.point[MU]} for row in rows]
        )
        return cls(rows, pd.concat(parts, ignore_index=True).merge(about, on="run"))

    @cached_property
    def results(self) -> Results:
        """Return the rows of each stage of the selection."""
        return {stage: self.of_stage(stage) for stage in SELECTION}

    def of_stage(self, stage: str) -> list[Row]:
        """Return the rows of a stage."""
        return [row for row in self.rows if row.stage == stage]

    def finals(self, mu: int, method: str) -> list[Row]:
        """Return the final runs of a method, by seed."""
        found = [row for row in self.of_stage(f"finals-mu{mu}") if row.method == method]
        return sorted(found, key=lambda row: row.point["seed"])

    def complete(self, mu: int) -> bool:
        """Report whether every method has a final run for each seed."""
        return all(len(self.finals(mu, method)) == len(FINAL_SEEDS) for method in METHODS)

    def scores(self, mu: int, method: str) -> list[float]:
        """Return the final test scores of a method, by seed."""
        return [100 * row.pass_at_1(TEST) for row in self.finals(mu, method)]

    def curve(self, row: Row) -> tuple[list[float], list[float]]:
        """Return sampled tokens and test scores of a run, before the first step and after each evaluation."""
        of_run = self.metrics[self.metrics["run"] == row.name].set_index("step")["tokens"]
        measured = sorted((e for e in row.evaluations if e["benchmark"] == TEST), key=lambda e: e["step"])
        tokens = [float(of_run[e["step"]]) if e["step"] else 0.0 for e in measured]
        return tokens, [100 * e["correct"] / e["n"] for e in measured]

    def areas(self, mu: int) -> dict[str, list[float]]:
        """Return areas under the test score over tokens, by method and seed, up to the tokens that all runs at this μ have."""
        curves = {method: [self.curve(row) for row in self.finals(mu, method)] for method in METHODS}
        until = min(tokens[-1] for runs in curves.values() for tokens, _ in runs)
        return {method: [area(*curve, until) for curve in runs] for method, runs in curves.items()}

    def contrast(self, mu: int, method: str, other: str) -> Contrast:
        """Compare the final scores of two methods, paired by seed and by problem."""
        ours, theirs = (self.finals(mu, name) for name in (method, other))
        shares = [np.mean([solved(row) for row in rows], axis=0) for rows in (ours, theirs)]
        _, low, high = paired_bootstrap(*shares)
        return contrast(self.scores(mu, method), self.scores(mu, other), (100 * low, 100 * high))

    def interval_over_problems(self, mu: int, method: str) -> tuple[float, float]:
        """Compute the 95 % interval of a mean score over resampled problems, for these seeds."""
        shares = np.mean([solved(row) for row in self.finals(mu, method)], axis=0)
        _, low, high = paired_bootstrap(shares, np.zeros_like(shares))
        return 100 * low, 100 * high

    def rate_curve(self, method: str, mu: int) -> dict[float, float]:
        """Return the validation score by learning rate with the chosen setting, first seed of the selection."""
        setting = {k: v for k, v in chosen_settings(self.results)[method].items() if k.startswith("objective.")}
        rows = self.results["select" if mu == STALE else "rates"]
        at = [
            row for row in rows if row.method == method and row.point[MU] == mu and setting.items() <= row.point.items()
        ]
        return dict(sorted((row.point[RATE], 100 * validation(row)) for row in at))

    def mean_of_rate(self, method: str) -> dict[float, tuple[float, float, float]]:
        """Return lowest, mean and highest validation score over the three settings by learning rate, at μ = 4."""
        by_rate: dict[float, list[float]] = {}
        for row in self.results["select"]:
            if row.method == method:
                by_rate.setdefault(row.point[RATE], []).append(100 * validation(row))
        return {rate: (min(scores), fmean(scores), max(scores)) for rate, scores in sorted(by_rate.items())}

    def chosen(self, method: str, mu: int) -> dict:
        """Return the setting and rate that the finals use."""
        return setting_of(self.finals(mu, method)[0])

    def in_finals(self, mu: int) -> pd.DataFrame:
        """Return the metrics of the final runs at one μ."""
        return self.metrics[self.metrics["stage"] == f"finals-mu{mu}"]


def contrast(ours: Sequence[float], theirs: Sequence[float], problems: tuple[float, float] | None = None) -> Contrast:
    """Compare values that are paired by seed."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    _, low, high = paired_t(differences)
    spread = stdev(differences)
    return Contrast(
        mean=fmean(differences),
        low=low,
        high=high,
        effect=fmean(differences) / spread if spread else float("nan"),
        p=sign_flip_of_seeds(differences),
        higher=sum(difference > 0 for difference in differences),
        problems=problems,
    )


def corrected(contrasts: Sequence[Contrast]) -> list[float]:
    """Return the p-values after Holm's correction."""
    return holm([each.p for each in contrasts])


def solved(row: Row) -> np.ndarray:
    """Return 1 for each test problem that was solved after the last step, else 0, [problems]."""
    last = max((e for e in row.evaluations if e["benchmark"] == TEST), key=lambda e: e["step"])
    bits = np.array([int(bit) for bit in f"{int(last['solved'], 16):0{last['n']}b}"])
    assert bits.sum() == last["correct"]
    return bits


def area(tokens: Sequence[float], scores: Sequence[float], until: float) -> float:
    """Compute the area under scores over tokens from 0 to `until`, straight lines between measurements, divided by `until`."""
    inside = [token for token in tokens if token < until]
    points = [*inside, until]
    return float(np.trapezoid(np.interp(points, tokens, scores), points)) / until


def working_rates(scores: dict[float, float]) -> list[float]:
    """Return the learning rates whose score is at most `WORKS` points below the best one."""
    return [rate for rate, score in scores.items() if score >= max(scores.values()) - WORKS]
