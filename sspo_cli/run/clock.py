"""Time measurement of a run."""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class Clock:
    """Measures the wall time of each step, in total and by phase.

    The time between `metrics` and `resume`, in which evaluations and checkpoints are made, is not part of any step.
    """

    def __init__(self, tokens: int, more: Collection[str] = ()) -> None:
        """Start the first step.

        tokens  number of tokens that the run sampled before this process started
        more    phases that this run has next to sampling, grading and learning: `sync`, `environment`
        """
        self._names = ("sampling", "grading", "learning", *more)
        self._nested = 0.0  # seconds of phases nested in the current phase
        self._began = self._last = time.perf_counter()
        self._busy = 0.0
        self._tokens_before = tokens
        self._phases: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block, except for phases nested in the block, to phase `name` of the current step."""
        start = time.perf_counter()
        before, self._nested = self._nested, 0.0
        yield
        took = time.perf_counter() - start
        self._phases[name] += took - self._nested
        self._nested = before + took

    def metrics(self, tokens: int) -> dict[str, float]:
        """End the step. Returns its times in seconds, and the tokens per second that this process has sampled so far.

        tokens  number of tokens that the run has sampled so far
        """
        now = time.perf_counter()
        step = now - self._last
        self._busy += step
        phases, self._phases = self._phases, defaultdict(float)
        return {
            **{f"time/{name}": phases[name] for name in self._names},
            "time/step": step,
            "time/elapsed": now - self._began,
            "time/tokens_per_second": (tokens - self._tokens_before) / self._busy,
        }

    def resume(self) -> None:
        """Start the next step now."""
        self._last = time.perf_counter()
