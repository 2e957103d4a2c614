"""Whether two configurations differ by more than seeds of one do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import permutation_test, ttest_1samp

from sspo_cli.report.measurements import VALIDATION, by, final, selected
from sspo_cli.report.paired import holm, p_text
from sspo_cli.report.runs import BASELINES, Group, Select
from sspo_cli.report.table import Cell, Table

REWARD = "reward"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Measured:
    """A quantity of a configuration, by seed: Pass@1 in %, or the final reward."""

    group: Group
    values: dict[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.values.values())


def seeds_table(groups: Sequence[Group], select: Select) -> Table | None:
    """Each of `groups` against the best and the strongest baseline of its setting, seed by seed, in Pass@1 on each benchmark
    and in the final reward. None where no two of them share two seeds."""
    rows: list[dict[str, Any]] = []
    for (setting, quantity), measured in _measured(groups, select).items():
        family = [
            {"setting": setting, "quantity": quantity, **compared}
            for one, other, role in _pairs(measured)
            if (compared := _compare(one, other, role))
        ]
        for name in ("p_exact", "p_t"):
            for row, adjusted in zip(family, holm([row[name] for row in family]), strict=True):
                row[f"{name}_holm"] = adjusted
        rows += family
    if not rows:
        return None
    several = len({row["setting"] for row in rows}) > 1
    body: list[list[Cell] | str] = []
    verdicts = []
    for (setting, quantity), family in by(rows, lambda row: (row["setting"], row["quantity"])).items():
        where = f"{quantity}, {setting}" if several else quantity
        body.append(where)
        body += [_line(row) for row in family]
        verdicts.append(_verdict(where, family))
    headings = ["Configuration", "Against", "Seeds", "Difference", "Seeds above", "p (exact)", "p (t)", "p (t, Holm)"]
    fewest = min(row["n"] for row in rows)
    notes = [
        *verdicts,
        "Difference: the mean over the common seeds of this configuration − the other, seed by seed (a seed draws the same "
        "problems in the same order for both), in points of Pass@1 or in reward (the mean of the last tenth of the steps, at "
        "most 2), with its 95 % interval by Student's t.",
        f"p (exact): over all flips of the signs of those differences, without an assumption; with n seeds it cannot be below "
        f"2^(1 − n), which is {2.0 ** (1 - fewest):.2g} for the {fewest} seeds here, so that with fewer than 6 seeds it cannot "
        "call any difference significant, however large. p (t): the paired t-test, which assumes that the differences are "
        "normally distributed, as so few seeds cannot show.",
        "p (t, Holm): adjusted for the comparisons of one setting and one quantity. The best and the strongest baseline (GRPO, "
        "GSPO, GMPO or SAPO) were picked by these same numbers, which flatters them a little.",
    ]
    return Table("seeds", "Differences against the noise of seeds", pd.DataFrame(rows), headings, body, notes)


def _measured(groups: Sequence[Group], select: Select) -> dict[tuple[str, str], list[Measured]]:
    """By setting and quantity. Finished runs only."""
    rows = selected(groups, select)
    rows = rows[rows["benchmark"] != VALIDATION]
    found: dict[tuple[str, str], list[Measured]] = {}
    for number, group in enumerate(groups):
        for column, same in rows[rows["group"] == number].groupby("column", sort=False):
            shares = 100 * same["correct"] / (same["n"] * same["samples"])
            values = dict(zip(same["seed"], shares, strict=True))
            found.setdefault((group.setting, str(column)), []).append(Measured(group, values))
    for group in groups:
        rewards = {run.options.seed: final(run, "reward/mean") for run in group.runs if run.finished}
        values = {seed: reward for seed, reward in rewards.items() if reward is not None}
        if values:
            found.setdefault((group.setting, REWARD), []).append(Measured(group, values))
    return found


def _pairs(measured: Sequence[Measured]) -> list[tuple[Measured, Measured, str]]:
    """Every one against the best, and against the strongest baseline where that is another, none twice."""
    best = max(measured, key=lambda one: one.mean)
    baseline = max((one for one in measured if one.group.method in BASELINES), key=lambda one: one.mean, default=None)
    role = "best, strongest baseline" if baseline is best else "best"
    pairs = [(one, best, role) for one in measured if one is not best and one is not baseline]
    if baseline is not None and baseline is not best:
        pairs += [(one, baseline, "strongest baseline") for one in measured if one is not baseline]
    return pairs


def _compare(one: Measured, other: Measured, role: str) -> dict[str, Any] | None:
    """None where they share no two seeds."""
    seeds = sorted(one.values.keys() & other.values.keys())
    if len(seeds) < 2:
        return None
    differences = [one.values[seed] - other.values[seed] for seed in seeds]
    exact = permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, rng=np.random.default_rng(0)
    )
    about = {"configuration": one.group.label, "against": other.group.label, "role": role}
    spread = stdev(differences)
    if spread > 1e-9:
        test = ttest_1samp(differences, 0.0)
        p, (low, high) = float(test.pvalue), map(float, test.confidence_interval())
    else:  # equal differences, as round numbers of few problems may be, do not say how far apart others would be
        p, low, high = float(exact.pvalue), math.nan, math.nan
    return {
        **about,
        "seeds": ", ".join(map(str, seeds)),
        "n": len(seeds),
        "difference": fmean(differences),
        "sd": spread,
        "low": low,
        "high": high,
        "above": sum(difference > 0 for difference in differences),
        "p_exact": float(exact.pvalue),
        "p_t": p,
    }


def _line(row: dict[str, Any]) -> list[Cell]:
    decimals = 2 if row["quantity"] == REWARD else 1
    difference, low, high = (f"{row[name]:+.{decimals}f}" for name in ("difference", "low", "high"))
    return [
        Cell(row["configuration"]),
        Cell(f"{row['against']} ({row['role']})"),
        Cell(row["seeds"]),
        Cell(difference, "" if math.isnan(row["low"]) else f"[{low}, {high}]", number=row["difference"]),
        Cell(f"{row['above']} of {row['n']}", number=row["above"]),
        *(Cell(p_text(row[name]), number=row[name]) for name in ("p_exact", "p_t", "p_t_holm")),
    ]


def _verdict(where: str, family: Sequence[dict[str, Any]]) -> str:
    """Which differences of a family are beyond the noise of seeds."""
    beyond = [row for row in family if row["p_t_holm"] < SIGNIFICANT]
    if not beyond:
        return f"{where}: none of the {len(family)} differences is beyond the noise of seeds (p (t, Holm) < {SIGNIFICANT})."
    decimals = 2 if family[0]["quantity"] == REWARD else 1
    named = [f"{row['configuration']} − {row['against']} ({row['difference']:+.{decimals}f})" for row in beyond]
    return (
        f"{where}: {len(beyond)} of {len(family)} differences are beyond the noise of seeds (p (t, Holm) < {SIGNIFICANT}): "
        f"{', '.join(named)}."
    )
