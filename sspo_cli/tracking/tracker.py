"""The tracker, which passes the events of a run to all sinks.

The metrics of a step are listed below; only `step` is required. Except for `time/*`, they are equal in every run with the same
seed. Rewards, groups and lengths are those of the minibatch's own completions.

    step, rollout, minibatch (1..mu), epoch, tokens (sampled so far)
    reward/mean, reward/answer, reward/format, reward/std
    groups/equal_reward             share of groups whose rewards are all equal, so that their advantages are 0
    completions/length, completions/truncated (share)
    policy/entropy (nats a token), policy/loss, policy/grad_norm, policy/skipped (bad steps so far)
    ratio/{log_mean,log_std,log_abs_p99,outside,dispersion,kl}, weights/{mean,attenuated}; the same by the sign of the advantage,
    as ratio/positive_kl, weights/negative_attenuated
    optimizer/learning_rate
    sampler/mismatch_mean, sampler/mismatch_max
    policy/expert_load              of a mixture of experts
    sampler/{rerouted_layers,rerouted_tokens}   shares; of a mixture whose sampler says which experts it chose
    grading/timeouts                answer checks that ran out of time so far
    episodes/{solved,turns,proposals,calls,timeouts,crashes}    means over the minibatch's own episodes, if it has any
    sandbox/failures                number of times that this process has lost and restarted its sandbox
    time/{sampling,grading,learning,environment,step,elapsed} (seconds), time/tokens_per_second
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from sspo_cli import ranks
from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.redaction import redacted
from sspo_cli.tracking.console import LogSink, console_sink
from sspo_cli.tracking.jsonl import JsonlSink
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink
from sspo_cli.tracking.wandb import WandbSink


def open_tracker(
    run: RunFolder, options: RunOptions | None = None, console: Console | None = None, earlier: Sequence[str] = ()
) -> "Tracker":
    """Open the sinks that the options select, on the first rank only.

    options  by default the options of the run
    console  by default standard output
    earlier  notes from before the run folder existed, for its log
    """
    if not ranks.is_first():
        return Tracker([])
    options = options or run.config
    view = console_sink(run, console or Console())
    sinks: list[Sink] = [JsonlSink(run)]
    if options.wandb.mode != "disabled":
        sinks.append(WandbSink(run, options, view.note))
    log = LogSink(run)
    for text in earlier:
        log.note(text)
    return Tracker([*sinks, log, view])  # the view last: it begins when nothing else can fail, and ends first


class Tracker:
    """Passes each event to every sink. At the end of a `with` block, calls `finish` with the state by the block's exception."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def start(self, total_steps: int, start_step: int = 0) -> None:
        """Start all sinks before the first stage; `start_step` is the step of a resumed run's checkpoint.

        Raises UserError if the run folder cannot be written or wandb cannot start.
        """
        for sink in self._sinks:
            sink.start(total_steps, start_step)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """Enclose work outside the optimizer steps, such as an evaluation: `total` units, reported by `advance`."""
        for sink in self._sinks:
            sink.begin_stage(name, total)
        try:
            yield
        finally:
            for sink in self._sinks:
                sink.end_stage()

    def advance(self, amount: int = 1, **values: float) -> None:
        """Report that `amount` more units of the stage are done; `values` are shown next to it, such as `loss=0.2`."""
        for sink in self._sinks:
            sink.advance(amount, values)

    def log(self, step: int, metrics: Metrics) -> None:
        """Log the metrics of an optimizer step. Raises UserError if the run folder cannot be written."""
        for sink in self._sinks:
            sink.log(step, metrics)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the sampled completions that are kept, as rows of `completions.jsonl`."""
        for sink in self._sinks:
            sink.completions(step, rows)

    def weights(self, step: int, histogram: Mapping[str, Any]) -> None:
        """Log the histogram of an optimizer step, a row of `weights.jsonl`."""
        for sink in self._sinks:
            sink.weights(step, histogram)

    def evaluation(self, step: int, benchmark: str, summary: Mapping[str, Any]) -> None:
        """Log a row of `eval/summary.json`, which the evaluation itself has written."""
        for sink in self._sinks:
            sink.evaluation(step, benchmark, summary)

    def note(self, text: str) -> None:
        """Print a line for the user, without credentials."""
        for sink in self._sinks:
            sink.note(redacted(text))

    def finish(self, state: State, reason: str | None = None) -> None:
        """Close every sink, even if another one fails."""
        with ExitStack() as closing:
            for sink in reversed(self._sinks):
                closing.callback(sink.finish, state, redacted(reason))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        match error:
            case None:
                self.finish("finished")
            case Interrupted() | KeyboardInterrupt():
                self.finish("interrupted", str(error) or "stopped by the user")
            case UserError():
                self.finish("failed", str(error))
            case _:
                self.finish("failed", f"{type(error).__name__}: {error}")
