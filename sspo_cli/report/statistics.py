"""Numbers over problems and over seeds."""

import pandas as pd

from sspo_cli.intervals import wilson
from sspo_cli.report.runs import Group, Run, distinguish

# What a Pass@1 was measured with; rows that differ in it are never put side by side as before and after.
MEASUREMENT = ("benchmark", "split", "n", "temperature", "max_new_tokens", "prompt")

SHARES = ("pass_at_1", "low", "high", "lowest_seed", "highest_seed")


def mean_over_seeds(runs: list[Run], metric: str) -> pd.Series:
    """By step, at the steps that every run has: a mean over changing seeds would jump where one ends."""
    columns = [run.metrics[metric] for run in runs if metric in run.metrics]
    return pd.concat(columns, axis=1).mean(axis=1, skipna=False).dropna() if columns else pd.Series(dtype=float)


def evaluations(groups: list[Group]) -> pd.DataFrame:
    """Every evaluation of a finished run: `group` is its group's place in the list, `column` a heading for its measurement."""
    rows = [
        {"group": number, "seed": run.options.seed, **dict.fromkeys(MEASUREMENT), **evaluation}
        for number, group in enumerate(groups)
        for run in group.runs
        if run.finished
        for evaluation in run.evaluations
    ]
    frame = pd.DataFrame(rows, columns=["group", "seed", *MEASUREMENT, "step", "correct"])
    measurements = frame[[*MEASUREMENT]].drop_duplicates()
    details = distinguish(list(measurements["benchmark"]), measurements.to_dict("records"))
    headings = [
        f"{name} ({detail})" if detail else name
        for name, detail in zip(measurements["benchmark"], details, strict=True)
    ]
    frame = frame.sort_values(["group", "step"], kind="stable")
    return frame.merge(measurements.assign(column=headings), on=[*MEASUREMENT], how="left")


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Pass@1 by group, measurement and step: the mean over the seeds with its 95 % interval, lowest and highest seed.

    The interval is Wilson's for the n problems and the mean number solved, rounded. It is not for n times seeds: the
    seeds answer the same problems, and before training they may even be the same model.
    """
    key = ["group", *MEASUREMENT, "column", "step"]
    summaries = []
    for values, same in rows.groupby(key, dropna=False, sort=False):
        shares = same["correct"] / same["n"]
        low, high = wilson(round(same["correct"].mean()), int(same["n"].iloc[0]))
        seeds = ", ".join(map(str, sorted(same["seed"])))
        summaries.append([*values, seeds, shares.mean(), low, high, shares.min(), shares.max()])
    return pd.DataFrame(summaries, columns=[*key, "seeds", *SHARES])
