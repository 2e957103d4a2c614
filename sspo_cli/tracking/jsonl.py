"""The sink of the run folder: metrics.jsonl, completions.jsonl, weights.jsonl and status.json."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sspo_cli.tracking.files import append_jsonl
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink

STATUS_SECONDS = 1.0  # least time between two writes of status.json


class JsonlSink(Sink):
    """Writes the files of a run, except for evaluations, which `sspo_cli.evaluation.summary` writes.

    Logging a step does not wait for the disk. Lines are written to the operating system's cache without a flush. `status.json`
    is flushed, so that it is never incomplete, but on a separate thread.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        status = run.status  # in case `finish` is called before `start`
        self._step, self._steps = status.get("step", 0), status.get("steps", run.config.steps)
        self._started = False
        self._status_due = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] = Future()  # the last write
        self._writing.set_result(None)

    def start(self, total_steps: int, start_step: int) -> None:
        self._started = True
        self._step, self._steps = start_step, total_steps
        self._run.write_status("running", self._step, self._steps)

    def log(self, step: int, metrics: Metrics) -> None:
        append_jsonl(self._run.metrics_path, {"step": step, **metrics})
        self._step = step
        if self._writing.done() and time.monotonic() >= self._status_due:
            self._writing.result()  # raises the exception if the last write failed
            self._writing = self._thread.submit(self._run.write_status, "running", step, self._steps)
            self._status_due = time.monotonic() + STATUS_SECONDS

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            append_jsonl(self._run.completions_path, {"step": step, **row})

    def weights(self, step: int, histogram: Mapping[str, Any]) -> None:
        append_jsonl(self._run.weights_path, {"step": step, **histogram})

    def finish(self, state: State, reason: str | None) -> None:
        self._thread.shutdown()
        if not self._started and self._run.status.get("state") == "finished":
            return  # the extension of a finished run was refused
        self._run.write_status(state, self._step, self._steps, reason)
