"""Comparison of differences between configurations with the noise between seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from sspo_cli.config import VALIDATION
from sspo_cli.report.choices import against_best_and_baseline
from sspo_cli.report.frame import split
from sspo_cli.report.groups import RunGroup, short_settings
from sspo_cli.report.table import Cell, Table
from sspo_cli.report.tables.paired import p_text
from sspo_cli.statistics import holm, paired_t, sign_flip_of_seeds

REWARD = "reward"
SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class SeedValues:
    """A quantity of a configuration by seed: Pass@1 in %, or the final reward."""

    group: RunGroup
    values: dict[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.values.values())


def against_noise(group_rows: pd.DataFrame, groups: Sequence[RunGroup]) -> pd.DataFrame:
    """Compare groups with the best one and the strongest baseline of their setting, seed by seed.

    group_rows  rows of the groups, from `rows_of`

    Compares Pass@1 on each benchmark at the selected step and the final reward, of finished runs, with a row for each pair
    that shares at least two seeds. Holm's correction is over the rows of one setting and quantity.
    """
    families = []
    for (setting, quantity), results in _seed_values(group_rows, groups).items():
        pairs = against_best_and_baseline(results, lambda result: result.mean, lambda result: result.group.method)
        rows = [compared for result, reference, role in pairs if (compared := _compare(result, reference, role))]
        if rows:
            family = pd.DataFrame(rows)
            family.insert(0, "setting", setting)
            family.insert(1, "quantity", quantity)
            families.append(family.assign(p_exact_holm=holm([*family["p_exact"]]), p_t_holm=holm([*family["p_t"]])))
    return pd.concat(families, ignore_index=True) if families else pd.DataFrame()


def seeds_table(noise: pd.DataFrame) -> Table | None:
    """Make a table of the result of `against_noise`; return None if it is empty."""
    if noise.empty:
        return None
    several = noise["setting"].nunique() > 1
    body: list[list[Cell] | str] = []
    for (setting, quantity), family in split(noise, "setting", "quantity"):
        body.append(f"{quantity}, {setting}" if several else quantity)
        body += map(_line, family.to_dict("records"))
    headings = ["Configuration", "Against", "Seeds", "Difference", "Seeds above", "p (exact)", "p (t)", "p (t, Holm)"]
    fewest, most = noise["n"].min(), noise["n"].max()
    bounds = " and ".join(f"{2.0 ** (1 - n):.2g} with {n} seeds" for n in dict.fromkeys((fewest, most)))
    notes = [
        "Lines and runs are those of table 1. Difference: this configuration − the other, the mean over their common seeds (a "
        "seed draws the same problems in the same order for both), in points of Pass@1, or in reward (the mean of the last "
        "tenth of the steps, at most 2); with its 95 % interval by Student's t. Seeds above: how many differences are positive.",
        "p (exact), two-sided: over all flips of the signs of the differences, without an assumption. It cannot be below "
        f"{bounds}; so with fewer than 6 seeds it cannot be below 0.05, however large the differences are.",
        "p (t): the paired t-test, which assumes normally distributed differences; so few seeds cannot verify this.",
        "p (t, Holm): adjusted for the number of comparisons in one setting and quantity. The best and the strongest baseline "
        "(GRPO, GSPO, GMPO or SAPO) were chosen by these same numbers, which favours them slightly.",
    ]
    if noise["low"].isna().any():
        notes.append(
            "If the differences of all seeds are equal, there is no interval: by Student's t it would have no width, and so few "
            "equal numbers do not show how much further seeds would differ. p (t) is p (exact) then."
        )
    return Table("seeds", "Differences against the noise of seeds", noise, headings, body, notes)


def verdict(noise: pd.DataFrame, groups: Sequence[RunGroup]) -> str:
    """Summarize in a sentence which differences of `against_noise` exceed the noise of seeds."""
    if noise.empty:
        return "No two configurations share two seeds, so differences cannot be compared with the noise of seeds."
    names = short_settings(groups)
    parts = []
    for (setting, quantity), family in split(noise, "setting", "quantity"):
        beyond = family[family["p_t_holm"] < SIGNIFICANT].to_dict("records")
        named = ", ".join(f"{row['configuration']} − {row['against']} ({_signed(row, 'difference')})" for row in beyond)
        where = f"{quantity} ({names[setting]})" if len(names) > 1 else quantity
        parts.append(
            f"{where}: {len(beyond)} of {len(family)}, {named}" if beyond else f"{where}: none of {len(family)}"
        )
    return (
        "Differences from the best and from the strongest baseline that are beyond the noise of seeds, by a paired t-test over "
        f"seeds with Holm's correction (p < {SIGNIFICANT}; all of them are in the table `seeds`): {'; '.join(parts)}."
    )


def _seed_values(group_rows: pd.DataFrame, groups: Sequence[RunGroup]) -> dict[tuple[str, str], list[SeedValues]]:
    """Collect the values by setting and quantity, benchmarks first."""
    values: dict[tuple[str, str], list[SeedValues]] = {}
    tests = group_rows[group_rows["selected"] & (group_rows["benchmark"] != VALIDATION)]
    for (group, column), measured in split(tests, "group", "column"):
        shares = dict(zip(measured["seed"], measured["percent"], strict=True))
        values.setdefault((group.setting, column), []).append(SeedValues(group, shares))
    for group in groups:
        rewards = {run.seed: reward for run in group.finished if (reward := run.final("reward/mean")) is not None}
        if rewards:
            values.setdefault((group.setting, REWARD), []).append(SeedValues(group, rewards))
    return values


def _compare(result: SeedValues, reference: SeedValues, role: str) -> dict[str, Any] | None:
    """Compare two configurations by their common seeds; return None if they share fewer than two."""
    seeds = sorted(result.values.keys() & reference.values.keys())
    if len(seeds) < 2:
        return None
    differences = [result.values[seed] - reference.values[seed] for seed in seeds]
    exact, (p, low, high) = sign_flip_of_seeds(differences), paired_t(differences)
    return {
        "configuration": result.group.label,
        "against": reference.group.label,
        "role": role,
        "seeds": ", ".join(map(str, seeds)),
        "n": len(seeds),
        "difference": fmean(differences),
        "sd": stdev(differences),
        "low": low,
        "high": high,
        "above": sum(difference > 0 for difference in differences),
        "p_exact": exact,
        "p_t": exact if math.isnan(p) else p,
    }


def _line(row: dict[Any, Any]) -> list[Cell]:
    interval = "" if math.isnan(row["low"]) else f"[{_signed(row, 'low')}, {_signed(row, 'high')}]"
    return [
        Cell(row["configuration"]),
        Cell(f"{row['against']} ({row['role']})"),
        Cell(row["seeds"]),
        Cell(_signed(row, "difference"), interval, number=row["difference"]),
        Cell(f"{row['above']} of {row['n']}", number=row["above"]),
        *(Cell(p_text(row[name]), number=row[name]) for name in ("p_exact", "p_t", "p_t_holm")),
    ]


def _signed(row: dict[Any, Any], name: str) -> str:
    decimals = 2 if row["quantity"] == REWARD else 1
    return f"{round(row[name], decimals) + 0.0:+.{decimals}f}"  # + 0.0: no minus before a zero
