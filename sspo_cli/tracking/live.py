"""The live view of a run on a terminal."""

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink
from sspo_cli.tracking.text import duration, number, pass_at_1, printable, reward_parts, sparkline, telemetry_parts
from sspo_cli.tracking.time_left import TimeLeft

HISTORY = 32  # number of steps that the sparklines show
STEPS = "steps"
SPEED_PERIOD = 600.0  # seconds over which a stage's speed is averaged, because a problem can take a minute
SAMPLE_CHARACTERS = 600
SAMPLING_TIME = re.compile(r"time/(rank_\d+_)?(sync|sampling|grading)")


class StageTimeLeft(TimeRemainingColumn):
    """The column of a stage's remaining time. It is empty for the bar of steps, because the `time` line shows that estimate."""

    def render(self, task: Task) -> Text:
        return Text("") if task.description == STEPS else super().render(task)


class LiveSink(Sink):
    """The live view. The training loop stores values, from which a thread of rich redraws the view four times per second.

    Text from a model is wrapped in `Text`, so that rich does not parse it as markup.
    """

    def __init__(self, run: RunFolder, console: Console) -> None:
        objective = run.config.objective
        self._title = f"{run.path.name} · {' '.join(objective.words)} · seed {run.config.seed}"
        self._console = console
        self._live: Live | None = None
        description = TextColumn(
            "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        )
        bar = BarColumn(bar_width=None, table_column=Column(ratio=1))
        columns = (description, bar, MofNCompleteColumn(), StageTimeLeft())
        self._progress = Progress(*columns, console=console, expand=True, speed_estimate_period=SPEED_PERIOD)
        self._left = TimeLeft(run.config.evaluation.every)
        self._steps: TaskID | None = None
        self._stage: TaskID | None = None
        self._stage_name = ""
        self._metrics: Metrics = {}
        self._rewards: deque[float] = deque(maxlen=HISTORY)
        self._entropies: deque[float] = deque(maxlen=HISTORY)
        self._evaluations: dict[str, str] = {}
        self._sample: Mapping[str, Any] | None = None

    def start(self, total_steps: int, start_step: int) -> None:
        self._left.start(total_steps, start_step)
        self._steps = self._progress.add_task(STEPS, total=total_steps, completed=start_step)
        live = Live(self, console=self._console, refresh_per_second=4)
        with _terminal_may_be_gone():
            live.start()
            self._live = live

    def begin_stage(self, name: str, total: int) -> None:
        self._stage_name = name
        self._left.begin_stage()
        self._stage = self._progress.add_task(name, total=total)

    def advance(self, amount: int, values: Mapping[str, float]) -> None:
        if self._stage is not None:
            suffix = "".join(f", {name} {value:.3g}" for name, value in values.items())
            self._progress.update(self._stage, advance=amount, description=self._stage_name + suffix)

    def end_stage(self) -> None:
        if self._stage is not None:
            self._left.end_stage()
            self._progress.remove_task(self._stage)
            self._stage = None

    def log(self, step: int, metrics: Metrics) -> None:
        # Only the first minibatch of a rollout batch has sampling times. They stay visible during the following minibatches.
        sampled = {
            name: value
            for name, value in self._metrics.items()
            if SAMPLING_TIME.fullmatch(name) and not metrics.get(name)
        }
        self._metrics = {**metrics, **sampled}
        self._left.log(step, metrics)
        for history, name in ((self._rewards, "reward/mean"), (self._entropies, "policy/entropy")):
            if math.isfinite(value := metrics.get(name, math.nan)):
                history.append(value)
        if self._steps is not None:
            self._progress.update(self._steps, completed=step)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self._sample = rows[0]

    def evaluation(self, step: int, benchmark: str, summary: Mapping[str, Any]) -> None:
        self._left.evaluation(step)
        self._evaluations = {**self._evaluations, benchmark: f"{benchmark} {pass_at_1(summary)}"}
        self.note(f"step {step}: {benchmark} Pass@1 {pass_at_1(summary)}")

    def note(self, text: str) -> None:
        with _terminal_may_be_gone():
            self._console.print(Text(printable(text)))

    def finish(self, state: State, reason: str | None) -> None:
        if self._live is not None:
            with _terminal_may_be_gone():
                self._live.stop()
        self.note(state)  # the command reports the reason

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self._title, style="bold"), self._progress]
        if self._metrics:
            table = Table.grid(padding=(0, 2, 0, 0))
            for label, value in self._lines(self._metrics):
                table.add_row(Text(label, style="dim"), value)
            parts.append(table)
        if self._sample is not None:
            parts += self._sample_lines(self._sample)
        return Group(*parts)

    def _lines(self, metrics: Metrics) -> Iterator[tuple[str, Text]]:
        yield "reward", Text(f"{number(metrics, 'reward/mean')}  {sparkline(self._rewards)}", style="bold green")
        yield "", Text("  ".join(reward_parts(metrics)))
        if "episodes/solved" in metrics:
            means = (f"{name} {number(metrics, f'episodes/{name}', '.2f')}" for name in ("turns", "calls", "timeouts"))
            yield "episodes", Text(f"solved {number(metrics, 'episodes/solved', '.0%')}  {'  '.join(means)}")
        yield "entropy", Text(f"{number(metrics, 'policy/entropy')}  {sparkline(self._entropies)}", style="bold cyan")
        yield "attenuated", Text(f"{number(metrics, 'weights/attenuated', '.1%')} of token weights")
        optimizer = (
            f"rate {number(metrics, 'optimizer/learning_rate', '.1e')}  grad {number(metrics, 'policy/grad_norm')}"
        )
        length = f"length {number(metrics, 'completions/length', '.1f')}"
        yield "", Text(f"{optimizer}  {length}  truncated {number(metrics, 'completions/truncated', '.0%')}")
        speed = f"{number(metrics, 'time/tokens_per_second', '.0f')} tokens/s"
        yield "time", Text(f"{self._left} left  {duration(metrics.get('time/elapsed', 0.0))} gone  {speed}")
        phases = (f"{name} {number(metrics, f'time/{name}', '.2f')} s" for name in ("sampling", "grading", "learning"))
        yield "", Text("  ".join(phases))
        if parts := telemetry_parts(metrics):
            yield "", Text("  ".join(parts))
        for text in self._evaluations.values():
            yield "Pass@1", Text(text)

    def _sample_lines(self, row: Mapping[str, Any]) -> list[RenderableType]:
        text = " ".join(printable(row["completion"]).split())  # newlines become spaces, to limit the height
        cut = text[:SAMPLE_CHARACTERS] + ("…" if len(text) > SAMPLE_CHARACTERS else "")
        verdict = f"answer {row['r_answer']}  format {row['r_format']}  gold {row['gold']}"
        return [Rule("a completion", style="dim"), Text(cut), Text(printable(verdict), style="dim")]


@contextmanager
def _terminal_may_be_gone() -> Iterator[None]:
    """Ignore errors of a closed terminal, so that the run continues without a view. Rich raises SystemExit for a broken pipe."""
    try:
        yield
    except (OSError, SystemExit):
        return
