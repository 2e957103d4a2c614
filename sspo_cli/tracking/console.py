"""The console sinks: a live view on a terminal, otherwise one plain line per step. They never end a run."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from sspo_cli.tracking.live import LiveSink
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink
from sspo_cli.tracking.text import duration, number, pass_at_1, printable, reward_parts, time_left


def console_sink(run: RunFolder, console: Console) -> Sink:
    """Return the live view if the terminal can draw it, otherwise plain lines."""
    draws = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveSink(run, console) if draws else PlainSink(console)


class PlainSink(Sink):
    """Short aligned lines without colours, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._file = console.file
        self._start_step = 0
        self._total_steps = 0

    def start(self, total_steps: int, start_step: int) -> None:
        self._start_step, self._total_steps = start_step, total_steps

    def begin_stage(self, name: str, total: int) -> None:
        self._stage, self._stage_total, self._done = name, total, 0
        self._stage_values: Mapping[str, float] = {}
        self._stage_began = time.perf_counter()

    def advance(self, amount: int, values: Mapping[str, float]) -> None:
        self._done += amount
        self._stage_values = values

    def end_stage(self) -> None:
        values = "".join(f", {name} {value:.4g}" for name, value in self._stage_values.items())
        took = duration(time.perf_counter() - self._stage_began)
        self._say(f"{self._stage}: {self._done}/{self._stage_total} in {took}{values}")

    def log(self, step: int, metrics: Metrics) -> None:
        columns = [
            f"step {step:{len(str(self._total_steps))}}/{self._total_steps}",
            f"reward {number(metrics, 'reward/mean')} ({', '.join(reward_parts(metrics))})",
            *([f"solved {number(metrics, 'episodes/solved', '.0%')}"] if "episodes/solved" in metrics else []),
            f"entropy {number(metrics, 'policy/entropy')}",
            f"attenuated {number(metrics, 'weights/attenuated', '6.1%')}",
            f"{number(metrics, 'time/tokens_per_second', '7.0f')} tokens/s",
            f"{number(metrics, 'time/step', '6.2f')} s",
            f"{time_left(metrics, step, self._start_step, self._total_steps)} left",
        ]
        self._say("  ".join(columns))

    def evaluation(self, step: int, benchmark: str, summary: Mapping[str, Any]) -> None:
        self._say(f"step {step}: {benchmark} Pass@1 {pass_at_1(summary)}")

    def note(self, text: str) -> None:
        self._say(text)

    def finish(self, state: State, reason: str | None) -> None:
        self._say(state)  # the command reports the reason

    def _say(self, text: str) -> None:
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        try:
            print(printable(text).encode(encoding, "replace").decode(encoding), file=self._file, flush=True)
        except OSError:  # the reader of the pipe is gone; the run continues and writes its folder
            return
