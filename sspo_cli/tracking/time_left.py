"""How long a run still takes: its steps and the evaluations to come."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

RECENT = 50  # steps whose mean time counts: completions grow or shrink while a policy learns


def evaluations_left(step: int, steps: int, every: int | None) -> int:
    """Count the evaluations after `step`: every so many steps, and after the last."""
    between = (steps - 1) // every - step // every if every else 0
    return max(0, between) + (step < steps)


def time_left(steps_left: int, step_seconds: float, evaluations: int, evaluation_seconds: float) -> float:
    """Return the seconds of the steps and the evaluations to come."""
    return steps_left * step_seconds + evaluations * evaluation_seconds


def time_left_of(rows: Sequence[Mapping[str, Any]], steps: int, every: int | None) -> float | None:
    """Return the seconds that a run still takes, by its rows of `metrics.jsonl`; None without any that says times.

    What passed between two steps and belongs to neither was an evaluation if one was due, else the writing of a checkpoint.
    """
    timed = [
        row for row in rows if isinstance(row.get("time/step"), float) and isinstance(row.get("time/elapsed"), float)
    ]
    if not timed:
        return None
    step = timed[-1]["step"]
    gaps: dict[bool, list[float]] = {True: [], False: [0.0]}
    for before, row in pairwise(timed):
        gap = row["time/elapsed"] - before["time/elapsed"] - row["time/step"]
        if gap >= 0:  # else the run was resumed between them
            gaps[bool(every and before["step"] % every == 0)].append(gap)
    a_step = fmean(row["time/step"] for row in timed[-RECENT:]) + fmean(gaps[False][-RECENT:])
    an_evaluation = fmean(gaps[True]) if gaps[True] else 0.0
    return time_left(steps - step, a_step, evaluations_left(step, steps, every), an_evaluation)
