"""The appendix of a grid: every configuration that was tried, over its seeds, and which of them was chosen."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sspo_cli.report.measurements import VALIDATION, by, final, over_seeds, selected
from sspo_cli.report.runs import Collection, Group, Select, method_name
from sspo_cli.report.table import NOTHING, Cell, Table

REWARD = "reward"


def configurations_table(collection: Collection, chosen: Sequence[Group], select: Select) -> Table | None:
    """A line for each configuration with a finished run; None where no method and gate has a second one in a setting."""
    groups = [group for group in collection.groups if any(run.finished for run in group.runs)]
    if not any(group.differs for group in groups):
        return None
    scores = over_seeds(selected(groups, select), by=["group"])
    columns = sorted(scores["column"].unique(), key=lambda column: not column.startswith(VALIDATION))  # it chooses
    by_place = {(row["group"], row["column"]): row for row in scores.to_dict("records")}
    rows: list[dict[str, Any]] = []
    body: list[list[Cell] | str] = []
    for setting, places in by(range(len(groups)), lambda place: groups[place].setting).items():
        body += [setting] if len(collection.settings) > 1 else []
        for place in places:
            group = groups[place]
            rewards = [value for run in group.counted if (value := final(run, "reward/mean")) is not None]
            numbers: dict[str, float] = {}
            for column in columns:
                score = by_place.get((place, column), {})
                numbers[column] = 100 * score.get("pass_at_1", math.nan)
                numbers[f"{column} sd"] = 100 * score.get("sd", math.nan)
            reward = pd.Series(rewards, dtype=float)
            numbers |= {REWARD: reward.mean(), f"{REWARD} sd": reward.std()}
            about = {
                "setting": setting,
                "method": group.method,
                "gate": group.gate,
                "configuration": group.hyperparameters,
                "chosen": any(group is one for one in chosen),
                "seeds": ", ".join(str(run.options.seed) for run in group.counted),
            }
            rows.append(about | numbers)
            body.append(
                [
                    Cell(method_name(group.method)),
                    Cell(group.gate),
                    Cell(about["configuration"] or NOTHING),
                    Cell("yes" if about["chosen"] else ""),
                    Cell(about["seeds"]),
                    *(_mean(numbers, column, 1) for column in columns),
                    _mean(numbers, REWARD, 2),
                ]
            )
    headings = ["Method", "Gate", "Configuration", "Chosen", "Seeds", *columns, "Reward"]
    when = "after the last step" if select == "last" else "at each run's best step by validation"
    notes = [
        f"Every configuration with a finished run: means ± standard deviations (of a sample) over its seeds. Pass@1 in % {when}; "
        "reward: the mean of the last tenth of the steps, at most 2.",
        "Chosen: shown in table 1, for the best mean Pass@1 on validation problems among the configurations of its method and "
        "gate; where they have no common validation, all of them are.",
    ]
    return Table("configurations", "Every configuration", pd.DataFrame(rows), headings, body, notes)


def _mean(numbers: dict[str, float], name: str, decimals: int) -> Cell:
    value, deviation = numbers[name], numbers[f"{name} sd"]
    if math.isnan(value):
        return Cell(NOTHING)
    spread = "" if math.isnan(deviation) else f" ± {deviation:.{decimals}f}"
    return Cell(f"{value:.{decimals}f}{spread}", number=value)
