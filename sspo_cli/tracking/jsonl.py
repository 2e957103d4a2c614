"""The run folder as a sink: metrics.jsonl, completions.jsonl, weights.jsonl and status.json."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sspo_cli.tracking.files import append_jsonl
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink

STATUS_SECONDS = 1.0  # between two writes of status.json, each of which waits for the disk


class JsonlSink(Sink):
    """Evaluations are not written here: `sspo_cli.evaluate` writes them, with or without a run in progress."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        status = run.status  # for a `finish` that comes before `start`
        self._step, self._steps = status.get("step", 0), status.get("steps", run.config.steps)
        self._status_due = 0.0

    def start(self, total_steps: int, start_step: int) -> None:
        self._step, self._steps = start_step, total_steps
        self._write_running()

    def log(self, step: int, metrics: Metrics) -> None:
        append_jsonl(self._run.metrics_path, {"step": step, **metrics})
        self._step = step
        if time.monotonic() >= self._status_due:
            self._write_running()

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            append_jsonl(self._run.completions_path, {"step": step, **row})

    def weights(self, step: int, histogram: Mapping[str, Any]) -> None:
        append_jsonl(self._run.weights_path, {"step": step, **histogram})

    def _write_running(self) -> None:
        self._run.write_status("running", self._step, self._steps)
        self._status_due = time.monotonic() + STATUS_SECONDS

    def finish(self, state: State, reason: str | None) -> None:
        self._run.write_status(state, self._step, self._steps, reason)
