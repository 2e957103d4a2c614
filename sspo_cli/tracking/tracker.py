"""The tracker, which passes the events of a run to all sinks.

The metrics of a step are listed below. Only `step` is required. Runs with the same seed have equal metrics, except for
`time/*` and `device/*`. Metrics of rewards, groups and completions are computed over the step's minibatch.

    step, rollout, minibatch (1..mu), epoch, tokens (sampled so far)
    reward/mean, reward/answer, reward/format, reward/std
    groups/equal_reward             share of groups whose rewards are all equal, so that their advantages are 0
    completions/length (tokens that the policy wrote), completions/truncated (share)
    policy/entropy (nats per token), policy/loss, policy/grad_norm, policy/skipped (number of bad steps so far)
    ratio/{log_mean,log_std,log_abs_p99,outside,dispersion,kl}, weights/{mean,attenuated}; also separately for tokens with
                                    positive and negative advantages, as ratio/positive_kl and weights/negative_attenuated
    optimizer/learning_rate
    sampler/mismatch_mean, sampler/mismatch_max
    policy/expert_load              only for a mixture of experts
    sampler/{rerouted_layers,rerouted_tokens}   shares; only for a mixture of experts whose sampler reports the chosen experts
    grading/timeouts                number of answer checks that have timed out so far
    episodes/{solved,turns,proposals,calls,timeouts,crashes}    means over the minibatch's episodes, if there are any
    sandbox/failures                number of times that this process has lost and restarted its sandbox
    time/{sync,sampling,grading,learning,environment,step,elapsed} (seconds), time/tokens_per_second
    time/rank_N_{sync,sampling,grading,learning,waiting,tokens_per_second}, device/{memory,rank_N_memory,flop_utilization}:
                                    see `sspo_cli.run.telemetry`
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
    """Return a tracker with the sinks that the options select. On all ranks except the first, it has no sinks.

    options  default: the options of the run
    console  default: standard output
    earlier  notes from before the run folder existed; they are added to its log
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
    return Tracker([*sinks, log, view])  # the view is last, so that it starts after all other sinks and ends first


class Tracker:
    """Passes each event to every sink.

    At the end of a `with` block, calls `finish` with the state that corresponds to the block's exception.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def start(self, total_steps: int, start_step: int = 0) -> None:
        """Start all sinks. Must be called first. `start_step` is the step of the checkpoint that the run resumes from.

        Raises UserError if the run folder cannot be written or wandb cannot start.
        """
        for sink in self._sinks:
            sink.start(total_steps, start_step)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """Mark the block as work outside the optimizer steps, such as an evaluation, that consists of `total` units."""
        for sink in self._sinks:
            sink.begin_stage(name, total)
        try:
            yield
        finally:
            for sink in self._sinks:
                sink.end_stage()

    def advance(self, amount: int = 1, **values: float) -> None:
        """Report that `amount` more units of the stage are done. `values`, such as `loss=0.2`, are shown with the progress."""
        for sink in self._sinks:
            sink.advance(amount, values)

    def log(self, step: int, metrics: Metrics) -> None:
        """Log the metrics of an optimizer step. Raises UserError if the run folder cannot be written."""
        for sink in self._sinks:
            sink.log(step, metrics)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the selected completions of a step, as rows of `completions.jsonl`."""
        for sink in self._sinks:
            sink.completions(step, rows)

    def weights(self, step: int, histogram: Mapping[str, Any]) -> None:
        """Log the token-weight histogram of an optimizer step, as a row of `weights.jsonl`."""
        for sink in self._sinks:
            sink.weights(step, histogram)

    def evaluation(self, step: int, benchmark: str, summary: Mapping[str, Any]) -> None:
        """Log the summary of an evaluation. The evaluation itself writes it to `eval/summary.json`."""
        for sink in self._sinks:
            sink.evaluation(step, benchmark, summary)

    def note(self, text: str) -> None:
        """Print a text for the user. Credentials are removed."""
        for sink in self._sinks:
            sink.note(redacted(text))

    def finish(self, state: State, reason: str | None = None) -> None:
        """Close all sinks in reverse order, even if closing a sink fails."""
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
