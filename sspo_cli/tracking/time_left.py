"""Estimate of a run's remaining time, for the remaining steps and evaluations."""

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from sspo_cli.tracking.text import duration

RECENT = 50  # number of last steps whose times are averaged, because the length of completions changes during learning


def evaluations_left(step: int, steps: int, every: int | None) -> int:
    """Return the number of evaluations after `step`: one every `every` steps, and one after the last of `steps` steps."""
    between = (steps - 1) // every - step // every if every else 0
    return max(0, between) + (step < steps)


def time_left(steps_left: int, step_seconds: float, evaluations: int, evaluation_seconds: float) -> float:
    """Return the seconds that the remaining steps and evaluations will take."""
    return steps_left * step_seconds + evaluations * evaluation_seconds


def time_left_of(rows: Sequence[Mapping[str, Any]], steps: int, every: int | None) -> float | None:
    """Estimate the remaining seconds of a run from its rows of `metrics.jsonl`; return None if no row has times.

    Time between two steps is assumed to be spent on an evaluation if one was due, and otherwise on writing a checkpoint.
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
        if gap >= 0:  # otherwise the run was resumed between the two steps
            gaps[bool(every and before["step"] % every == 0)].append(gap)
    a_step = fmean(row["time/step"] for row in timed[-RECENT:]) + fmean(gaps[False][-RECENT:])
    an_evaluation = fmean(gaps[True]) if gaps[True] else 0.0
    return time_left(steps - step, a_step, evaluations_left(step, steps, every), an_evaluation)


class TimeLeft:
    """Estimates the time of a run's remaining steps and evaluations from the events of a sink."""

    def __init__(self, every: int | None) -> None:
        """Initialize without data. `every` is the number of steps between two evaluations, or None."""
        self._every = every
        self._start_step = self._total_steps = self._step = 0
        self._elapsed: float | None = None  # since the first step of this process
        self._evaluations: dict[int, float] = {}  # seconds, by step
        self._stage_began = self._stage_seconds = 0.0

    def start(self, total_steps: int, start_step: int) -> None:
        self._start_step, self._step, self._total_steps = start_step, start_step, total_steps

    def begin_stage(self) -> None:
        self._stage_began = time.perf_counter()

    def end_stage(self) -> None:
        self._stage_seconds = time.perf_counter() - self._stage_began

    def evaluation(self, step: int) -> None:
        """Add the time of the last stage to the evaluation at `step`."""
        self._evaluations[step] = self._evaluations.get(step, 0.0) + self._stage_seconds

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._step, self._elapsed = step, metrics.get("time/elapsed")

    def seconds(self) -> float | None:
        """Return the remaining seconds after the last logged step, or None if no step with times was logged."""
        taken = self._step - self._start_step
        if self._elapsed is None or not taken:
            return None
        between = sum(seconds for step, seconds in self._evaluations.items() if step > self._start_step)
        an_evaluation = fmean(self._evaluations.values()) if self._evaluations else 0.0
        to_come = evaluations_left(self._step - 1, self._total_steps, self._every)  # including one due now
        left = self._total_steps - self._step
        return time_left(left, (self._elapsed - between) / taken, to_come, an_evaluation)

    def __str__(self) -> str:
        seconds = self.seconds()
        return "-" if seconds is None else duration(seconds)


SOON = 1.0  # seconds; units reported in this time at the start were done before an interruption


class StageProgress:
    """The progress of a stage as a line of text."""

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._values: Mapping[str, float] = {}
        self._began = time.perf_counter()
        self._before = 0  # units done before an interruption

    def advance(self, amount: int, values: Mapping[str, float]) -> None:
        if not self._done and time.perf_counter() - self._began < SOON:
            self._before = amount
        self._done += amount
        self._values = values

    def progress(self) -> str:
        """Format the progress: `cold start: 120/700, 0:01:05 left, loss 0.2`."""
        done, gone = self._done - self._before, time.perf_counter() - self._began
        left = duration(gone / done * (self._total - self._done)) if done > 0 else "-"
        return f"{self._name}: {self._done}/{self._total}, {left} left{self._details()}"

    def result(self) -> str:
        """Format the result: `cold start: 700/700 in 0:02:10, loss 0.1`."""
        return f"{self._name}: {self._done}/{self._total} in {duration(time.perf_counter() - self._began)}{self._details()}"

    def _details(self) -> str:
        return "".join(f", {name} {value:.4g}" for name, value in self._values.items())
