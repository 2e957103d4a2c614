"""Estimate of a run's remaining time, for its steps and the evaluations to come."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

RECENT = 50  # last steps whose mean time counts, because the length of completions changes during learning


def evaluations_left(step: int, steps: int, every: int | None) -> int:
    """Count the evaluations after `step`: one after `every` steps, and one after the last."""
    between = (steps - 1) // every - step // every if every else 0
    return max(0, between) + (step < steps)


def time_left(steps_left: int, step_seconds: float, evaluations: int, evaluation_seconds: float) -> float:
    """Return the seconds of the steps and the evaluations to come."""
    return steps_left * step_seconds + evaluations * evaluation_seconds


def time_left_of(rows: Sequence[Mapping[str, Any]], steps: int, every: int | None) -> float | None:
    """Estimate the remaining seconds of a run from its rows of `metrics.jsonl`; return None if no row has times.

    Time between two steps counts as an evaluation if one was due, otherwise as the writing of a checkpoint.
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
