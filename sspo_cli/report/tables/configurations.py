"""The table of all configurations over their seeds, with the chosen ones marked."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sspo_cli.config import VALIDATION
from sspo_cli.report.collect import Collection
from sspo_cli.report.frame import over_seeds, rows_of
from sspo_cli.report.groups import RunGroup, grouped, method_name
from sspo_cli.report.table import NOTHING, Cell, Table

REWARD = "reward"


def configurations_table(collection: Collection, chosen: Sequence[RunGroup]) -> Table | None:
    """Make the table of configurations with finished runs; return None if no method and gate has several in a setting."""
    groups = [group for group in collection.groups if group.finished]
    rivals = grouped(groups, lambda group: (group.setting, group.method, group.gate)).values()
    if max(map(len, rivals), default=0) < 2:
        return None
    rows = rows_of(collection.frame, groups)
    scores = over_seeds(rows[rows["selected"]], by=["group"])
    # Validation first.
    columns = sorted(scores["column"].unique(), key=lambda column: not column.startswith(VALIDATION))
    records = {(record["group"], record["column"]): record for record in scores.to_dict("records")}
    lines: list[dict[str, Any]] = []
    body: list[list[Cell] | str] = []
    for setting, members in grouped(groups, lambda group: group.setting).items():
        body += [setting] if len(collection.settings) > 1 else []
        for group in members:
            fields = {
                "setting": setting,
                "method": group.method,
                "gate": group.gate,
                "configuration": group.configuration,
                "chosen": group in chosen,
                "seeds": ", ".join(str(run.seed) for run in group.finished),
            }
            numbers: dict[str, float] = {}
            for column in columns:
                record = records.get((group, column), {})
                numbers |= {
                    column: 100 * record.get("pass_at_1", math.nan),
                    f"{column} sd": 100 * record.get("sd", math.nan),
                }
            rewards = pd.Series(group.final("reward/mean"), dtype=float)
            numbers |= {REWARD: rewards.mean(), f"{REWARD} sd": rewards.std()}
            lines.append(fields | numbers)
            cells = [method_name(group.method), group.gate, fields["configuration"] or NOTHING]
            cells += ["yes" if fields["chosen"] else "", fields["seeds"]]
            means = [*(_mean(numbers, column, 1) for column in columns), _mean(numbers, REWARD, 2)]
            body.append([*map(Cell, cells), *means])
    headings = ["Method", "Gate", "Configuration", "Chosen", "Seeds", *columns, "Reward"]
    when = "after the last step" if collection.select == "last" else "at each run's best step by validation"
    notes = [
        f"Every configuration with a finished run: means ± standard deviations (of a sample) over its seeds. Pass@1 in % {when}; "
        "reward: the mean of the last tenth of the steps, at most 2.",
        "Chosen: shown in table 1, because it has the best mean Pass@1 on validation problems among the configurations of its "
        "method and gate. If they have no common validation, all of them are chosen.",
    ]
    return Table("configurations", "Every configuration", pd.DataFrame(lines), headings, body, notes)


def _mean(numbers: dict[str, float], name: str, decimals: int) -> Cell:
    value, deviation = numbers[name], numbers[f"{name} sd"]
    if math.isnan(value):
        return Cell(NOTHING)
    spread = "" if math.isnan(deviation) else f" ± {deviation:.{decimals}f}"
    return Cell(f"{value:.{decimals}f}{spread}", number=value)
