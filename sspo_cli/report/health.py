"""Health check of all runs of a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from sspo_cli.report.collect import Collection
from sspo_cli.tracking.health import FEWEST_STEPS, health


def signs_of_trouble(collection: Collection) -> tuple[str, list[str]]:
    """Return a heading with the number of runs in trouble, and a sentence for each sign of trouble and run.

    The signs are those that `tracking.health` reports at the end of each run. The heading is empty if no run has enough steps.
    """
    judged = [run for run in collection.runs if len(run.metrics) >= FEWEST_STEPS]
    signs = {run.path: health(_rows(run.metrics.to_dict("records"))) for run in judged}
    troubled = sum(map(bool, signs.values()))
    heading = f"Health: signs of trouble in {troubled} of {len(judged)} {'run' if len(judged) == 1 else 'runs'}"
    return heading if judged else "", [f"`{path}`: {sign}." for path, of_run in signs.items() for sign in of_run]


def _rows(rows: Sequence[Mapping[Any, float]]) -> list[dict[str, float]]:
    """Remove metrics that are NaN, which are missing at this step, from each row."""
    return [{key: value for key, value in row.items() if value == value} for row in rows]
