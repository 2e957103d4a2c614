"""Where the time of a run goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Measures the wall time of the steps, by phase, and of this process's part of the run.

    Evaluations and checkpoints are in neither a step's time nor the speed.
    """

    def __init__(self, tokens: int, environments: bool) -> None:
        """Start the first step; `tokens` were sampled before. `environments` have a phase of their own, if there are any."""
        self._names = ("sampling", "grading", "learning", *(["environment"] if environments else []))
        self._nested = 0.0  # seconds of the phases in the one that is being measured
        self._began = self._last = time.perf_counter()
        self._busy = 0.0
        self._tokens_before = tokens
        self._phases: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of a `with` to a phase of the step, without that of phases in it."""
        start = time.perf_counter()
        before, self._nested = self._nested, 0.0
        yield
        took = time.perf_counter() - start
        self._phases[name] += took - self._nested
        self._nested = before + took

    def metrics(self, tokens: int) -> dict[str, float]:
        """Return the seconds of the step that ends now, and sampled tokens a second over all steps of the part."""
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
