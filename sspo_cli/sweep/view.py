"""Progress of a sweep: a live table on a terminal, otherwise a line for each event."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from sspo_cli.errors import UserError, quantity
from sspo_cli.sweep.grid import Trial
from sspo_cli.tracking.files import last_jsonl_rows
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import METRICS, check_shape
from sspo_cli.tracking.text import duration

ORDER = ("running", "still running", "stopped", "failed", "to be retried", "waiting", "finished")  # from top to bottom
RECENT = 20  # steps whose mean time is used to estimate the remaining time
MARGIN = 6  # terminal lines for title, header and borders of the table


class TrialsView:
    """A table with the state, step, reward, time left and slot of every trial, read from their folders."""

    def __init__(self, trials: Sequence[Trial], folder: Path, console: Console) -> None:
        self._options = {trial.name: trial.options for trial in trials}
        self._folder = folder
        self._console = console
        self._slots: dict[str, str] = {}
        self._states = {trial.name: "waiting" for trial in trials}
        self._steps = {trial.name: self._step(trial.name) for trial in trials}
        for name in self._states:
            if RunFolder(folder / name).status.get("state") == "finished":
                self._states[name] = "finished"
        self._began, self._steps_before = time.monotonic(), sum(self._steps.values())
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        before = Counter(self._states.values())["finished"]
        self._console.print(
            f"{quantity(len(self._states), 'trial')} in {self._folder}, {before} finished before", soft_wrap=True
        )
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    def started(self, name: str, slot: str) -> None:
        self._states[name], self._slots[name] = "running", slot
        self._say("started", name)

    def left_running(self, name: str) -> None:
        """Report once that a process which this sweep does not control is still running the trial."""
        if self._states[name] != "still running":
            self._states[name] = "still running"
            self._say("still running", name)

    def ended(self, name: str, state: str) -> None:
        self._states[name] = state
        self._steps[name] = self._step(name)
        self._slots.pop(name, None)
        self._say(state, name)

    def refresh(self) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)

    def _say(self, what: str, name: str) -> None:
        if not self._live:
            finished = Counter(self._states.values())["finished"]
            progress = [f"{finished} of {len(self._states)} finished", *self._left()]
            self._console.print(f"{what:13} {name} ({', '.join(progress)})", soft_wrap=True)

    def _left(self) -> list[str]:
        """Estimate the remaining time from the steps since the sweep was started.

        Returns an empty list before the first step and after the last.
        """
        self._steps.update({name: self._step(name) for name, state in self._states.items() if state == "running"})
        done = sum(self._steps.values()) - self._steps_before
        to_do = sum(
            self._options[name].steps - self._steps[name]
            for name, state in self._states.items()
            if state not in ("finished", "failed")
        )
        if done <= 0 or to_do <= 0:
            return []
        return [f"about {duration((time.monotonic() - self._began) / done * to_do)} left"]

    def table(self) -> RenderableType:
        counts = Counter(self._states.values())
        progress = [*(f"{counts[state]} {state}" for state in ORDER if counts[state]), *self._left()]
        table = Table(title=", ".join(progress), expand=True)
        table.add_column("trial", ratio=1, no_wrap=True, overflow="ellipsis")
        for column in ("state", "step", "reward", "left", "where"):
            table.add_column(column, no_wrap=True, justify="right" if column in ("step", "reward", "left") else "left")
        names = sorted(self._states, key=lambda name: ORDER.index(self._states[name]))
        visible = max(3, self._console.height - MARGIN)
        for name in names[:visible]:
            state = self._states[name]
            table.add_row(name, state, *self._progress(name), self._slots.get(name, ""))
        if len(names) > visible:
            table.caption = f"and {len(names) - visible} more"
        return table

    def _progress(self, name: str) -> tuple[str, str, str]:
        """Return step, reward and time left, from the last metrics of the trial."""
        rows = self._last_rows(name, RECENT)
        if not rows:
            return "", "", ""
        last, steps = rows[-1], self._options[name].steps
        left = statistics.mean(row.get("time/step") or 0.0 for row in rows) * (steps - last["step"])
        return f"{last['step']}/{steps}", f"{last.get('reward/mean') or 0.0:.2f}", duration(left) if left else ""

    def _step(self, name: str) -> int:
        """Return the last step that the trial took."""
        rows = self._last_rows(name, 1)
        return rows[-1]["step"] if rows else 0

    def _last_rows(self, name: str, count: int) -> list[dict[str, Any]]:
        """Return the last metrics of a trial, or an empty list if the file is damaged. The trial reports the damage itself."""
        path = RunFolder(self._folder / name).metrics_path
        try:
            return [check_shape(row, METRICS, str(path)) for row in last_jsonl_rows(path, count)]
        except UserError:
            return []
