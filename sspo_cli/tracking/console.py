"""The console sinks: a live view on a terminal, otherwise one plain line per step. Failed output never ends a run."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from sspo_cli.redaction import redacted
from sspo_cli.tracking.live import LiveSink
from sspo_cli.tracking.pulse import Pulse
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink
from sspo_cli.tracking.text import duration, number, pass_at_1, printable, reward_parts, telemetry_parts
from sspo_cli.tracking.time_left import StageProgress, TimeLeft


def console_sink(run: RunFolder, console: Console) -> Sink:
    """Return a LiveSink if the terminal can draw the live view, otherwise a PlainSink."""
    draws = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveSink(run, console) if draws else PlainSink(console, run.config.evaluation.every)


class NoteSink(Sink):
    """Passes each line of each note to the function `write`. A dry run uses this sink."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def note(self, text: str) -> None:
        for line in text.splitlines():
            self._write(printable(line))


class PlainSink(Sink):
    """Prints short aligned lines without colours, for logs and pipes. Reports progress if nothing was printed for 30 s."""

    def __init__(self, console: Console, every: int | None = None) -> None:
        """Initialize the sink. `every` is the number of steps between two evaluations, or None."""
        self._file = console.file
        self._total_steps = self._step = 0
        self._step_began = 0.0
        self._left = TimeLeft(every)
        self._stage: StageProgress | None = None
        self._pulse = Pulse(self._say, self._describe)
        self._writing = threading.Lock()

    def start(self, total_steps: int, start_step: int) -> None:
        self._total_steps, self._step, self._step_began = total_steps, start_step, time.perf_counter()
        self._left.start(total_steps, start_step)
        self._pulse.__enter__()

    def begin_stage(self, name: str, total: int) -> None:
        self._stage = StageProgress(name, total)
        self._left.begin_stage()

    def advance(self, amount: int, values: Mapping[str, float]) -> None:
        if self._stage:
            self._stage.advance(amount, values)

    def end_stage(self) -> None:
        if self._stage:
            self._left.end_stage()
            self._say(self._stage.result())
            self._stage, self._step_began = None, time.perf_counter()

    def log(self, step: int, metrics: Metrics) -> None:
        self._step, self._step_began = step, time.perf_counter()
        self._left.log(step, metrics)
        columns = [
            f"step {step:{len(str(self._total_steps))}}/{self._total_steps}",
            f"reward {number(metrics, 'reward/mean')} ({', '.join(reward_parts(metrics))})",
            *([f"solved {number(metrics, 'episodes/solved', '.0%')}"] if "episodes/solved" in metrics else []),
            f"entropy {number(metrics, 'policy/entropy')}",
            f"attenuated {number(metrics, 'weights/attenuated', '6.1%')}",
            f"rate {number(metrics, 'optimizer/learning_rate', '.1e')}",
            f"grad {number(metrics, 'policy/grad_norm')}",
            f"length {number(metrics, 'completions/length', '6.1f')}",
            f"truncated {number(metrics, 'completions/truncated', '4.0%')}",
            f"{number(metrics, 'time/tokens_per_second', '7.0f')} tokens/s",
            f"{number(metrics, 'time/step', '6.2f')} s",
            f"{self._left} left",
            *telemetry_parts(metrics),
        ]
        self._say("  ".join(columns))

    def evaluation(self, step: int, benchmark: str, summary: Mapping[str, Any]) -> None:
        self._left.evaluation(step)
        self._say(f"step {step}: {benchmark} Pass@1 {pass_at_1(summary)}")

    def note(self, text: str) -> None:
        self._say(text)

    def finish(self, state: State, reason: str | None) -> None:
        self._pulse.__exit__(None, None, None)
        self._say(state)  # the command reports the reason

    def _describe(self) -> str:
        """Describe the current step or stage and its remaining time."""
        if self._stage:
            return self._stage.progress()
        taken = duration(time.perf_counter() - self._step_began)
        return f"step {self._step}/{self._total_steps}: working for {taken}, {self._left} left"

    def _say(self, text: str) -> None:
        self._pulse.note_output()
        with self._writing, suppress(OSError):  # the reader of the pipe may be gone; the run continues
            self._write(printable(text))

    def _write(self, line: str) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        print(line.encode(encoding, "replace").decode(encoding), file=self._file, flush=True)


class LogSink(PlainSink):
    """Appends the lines of a PlainSink to the run folder's console.log, each line with a single write."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(Console(), run.config.evaluation.every)
        self._path: Path = run.log_path

    def start(self, total_steps: int, start_step: int) -> None:
        self._say(f"{datetime.now(UTC).isoformat(timespec='seconds')}: from step {start_step} to {total_steps}")
        super().start(total_steps, start_step)

    def finish(self, state: State, reason: str | None) -> None:
        super().finish(state, reason)
        if reason:
            self._say(reason)

    def _write(self, line: str) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, f"{redacted(line)}\n".encode())
        finally:
            os.close(descriptor)
