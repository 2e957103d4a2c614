"""Whether two configurations differ by more than seeds of one do."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from sspo_cli.report.measurements import VALIDATION, by, final, selected
from sspo_cli.report.paired import p_text
from sspo_cli.report.runs import BASELINES, Group, Select, short_settings
from sspo_cli.report.table import Cell, Table
from sspo_cli.statistics import holm, paired_t, sign_flip_of_seeds

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


def against_noise(groups: Sequence[Group], select: Select) -> list[dict[str, Any]]:
    """Each of `groups` against the best and the strongest baseline of its setting, seed by seed, in Pass@1 on each benchmark
    and in the final reward: a row for each two that share two seeds.

    Holm's correction is for the rows of one setting and quantity.
    """
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
    return rows


def seeds_table(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Those of `against_noise`; None where there is none."""
    if not rows:
        return None
    several = len({row["setting"] for row in rows}) > 1
    body: list[list[Cell] | str] = []
    for (setting, quantity), family in _families(rows):
        body.append(f"{quantity}, {setting}" if several else quantity)
        body += [_line(row) for row in family]
    headings = ["Configuration", "Against", "Seeds", "Difference", "Seeds above", "p (exact)", "p (t)", "p (t, Holm)"]
    fewest, most = min(row["n"] for row in rows), max(row["n"] for row in rows)
    bounds = " and ".join(f"{2.0 ** (1 - n):.2g} with {n} seeds" for n in dict.fromkeys((fewest, most)))
    notes = [
        "Lines and runs are those of table 1. Difference: this configuration − the other, the mean over their common seeds (a "
        "seed draws the same problems in the same order for both), in points of Pass@1, or in reward (the mean of the last "
        "tenth of the steps, at most 2); with its 95 % interval by Student's t. Seeds above: how many differences are positive.",
        "p (exact), two-sided: over all flips of the signs of the differences, without an assumption. It cannot be below "
        f"{bounds}; so with fewer than 6 seeds it cannot be below 0.05, however large the differences are.",
        "p (t): the paired t-test, which assumes normally distributed differences; so few seeds cannot show whether they are.",
        "p (t, Holm): adjusted for the number of comparisons in one setting and quantity. The best and the strongest baseline "
        "(GRPO, GSPO, GMPO or SAPO) were picked by these same numbers, which flatters them a little.",
    ]
    return Table("seeds", "Differences against the noise of seeds", pd.DataFrame(rows), headings, body, notes)


def verdict(rows: Sequence[dict[str, Any]], groups: Sequence[Group]) -> str:
    """Of the rows of `against_noise`, a sentence on which of them, by quantity and setting, are beyond the noise of seeds."""
    if not rows:
        return "No two configurations share two seeds, so that nothing here tells a difference from the noise of seeds."
    names = short_settings(groups)
    parts = []
    for (setting, quantity), family in _families(rows):
        beyond = [row for row in family if row["p_t_holm"] < SIGNIFICANT]
        named = ", ".join(f"{row['configuration']} − {row['against']} ({_signed(row, 'difference')})" for row in beyond)
        where = f"{quantity} ({names[setting]})" if len(names) > 1 else quantity
        parts.append(
            f"{where}: {len(beyond)} of {len(family)}, {named}" if beyond else f"{where}: none of {len(family)}"
        )
    return (
        "Differences from the best and from the strongest baseline that are beyond the noise of seeds, by a paired t-test over "
        f"seeds with Holm's correction (p < {SIGNIFICANT}; all of them are in the table `seeds`): {'; '.join(parts)}."
    )


def _families(rows: Sequence[dict[str, Any]]) -> Iterable[tuple[tuple[str, str], list[dict[str, Any]]]]:
    return by(rows, lambda row: (row["setting"], row["quantity"])).items()


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
    exact, (p, low, high) = sign_flip_of_seeds(differences), paired_t(differences)
    about = {"configuration": one.group.label, "against": other.group.label, "role": role}
    return {
        **about,
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


def _line(row: dict[str, Any]) -> list[Cell]:
    interval = "" if math.isnan(row["low"]) else f"[{_signed(row, 'low')}, {_signed(row, 'high')}]"
    return [
        Cell(row["configuration"]),
        Cell(f"{row['against']} ({row['role']})"),
        Cell(row["seeds"]),
        Cell(_signed(row, "difference"), interval, number=row["difference"]),
        Cell(f"{row['above']} of {row['n']}", number=row["above"]),
        *(Cell(p_text(row[name]), number=row[name]) for name in ("p_exact", "p_t", "p_t_holm")),
    ]


def _signed(row: dict[str, Any], name: str) -> str:
    decimals = 2 if row["quantity"] == REWARD else 1
    return f"{round(row[name], decimals) + 0.0:+.{decimals}f}"  # + 0.0: no minus before a zero
