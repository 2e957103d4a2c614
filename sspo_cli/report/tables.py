"""The Pass@1 table: one frame of numbers, printed as CSV, Markdown and LaTeX."""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from sspo_cli.report.runs import Group, method_name
from sspo_cli.report.statistics import MEASUREMENT, evaluations, over_seeds

ARROW = "→"


def before_and_after(groups: list[Group]) -> pd.DataFrame:
    """A row for each group and measurement: Pass@1 at step 0 and after the last step, in shares of 1, by the same seeds.

    Runs that are not finished or were not evaluated after their last step are not in it.
    """
    rows = evaluations(groups)
    last = rows["group"].map(lambda number: groups[number].runs[0].options.steps)
    run = ["group", "seed", *MEASUREMENT]
    rows = rows.merge(rows.loc[rows["step"] == last, run], on=run)
    shares = over_seeds(rows)
    key = ["group", *MEASUREMENT, "column"]
    before = shares[shares["step"] == 0].drop(columns=["step", "seeds"])
    after = shares[shares["step"] == shares["group"].map(lambda number: groups[number].runs[0].options.steps)]
    about = pd.DataFrame(
        [[number, g.setting, g.method, g.gate, g.details] for number, g in enumerate(groups)],
        columns=["group", "setting", "method", "gate", "details"],
    )
    table = about.merge(before.merge(after.drop(columns="step"), on=key, how="right", suffixes=("_before", "_after")))
    return table.drop(columns="group")


def for_reading(table: pd.DataFrame) -> pd.DataFrame:
    """Rows by method and gate, columns by benchmark, cells `before → after` in %, each with its interval."""
    cells = table.assign(cell=[_cell(row) for row in table.to_dict("records")])
    index = ["setting", "method", "gate", "details", "seeds"]
    wide = (
        cells.pivot(index=index, columns="column", values="cell")
        .reindex(pd.MultiIndex.from_frame(cells[index].drop_duplicates()))
        .fillna("–")
    )
    wide = wide.reset_index().rename_axis(columns=None)
    wide["method"] = wide["method"].map(method_name)
    saying_nothing = [name for name in ("setting", "details") if wide[name].nunique() == 1]
    return wide.drop(columns=saying_nothing).rename(columns=dict(zip(index, map(str.capitalize, index), strict=True)))


def to_markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """For booktabs."""
    return table.to_latex(index=False, escape=True).replace(ARROW, r"$\rightarrow$").replace("–", "--")


def _cell(row: dict[Hashable, Any]) -> str:
    return f"{_share(row, 'before')} {ARROW} {_share(row, 'after')}"


def _share(row: dict[Hashable, Any], when: str) -> str:
    share, low, high = (row[f"{name}_{when}"] for name in ("pass_at_1", "low", "high"))
    return "–" if pd.isna(share) else f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
