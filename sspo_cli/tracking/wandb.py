"""A copy of the run at Weights & Biases, or in the run folder for `wandb sync` to send later."""

import json
import secrets
import shlex
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError, first_line
from sspo_cli.redaction import redacted
from sspo_cli.tracking.files import write_text_atomic
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink

if TYPE_CHECKING:
    import wandb

ROWS = 64  # of the table of completions: the latest so many
PER_TOKEN = ("pieces", "weights", "written")  # of a completion; left out of the table


class WandbSink(Sink):
    """Logging only queues: a process of wandb's own writes and sends. `note` says a line to the user."""

    def __init__(self, run: RunFolder, options: RunOptions, note: Callable[[str], None]) -> None:
        self._folder = run
        self._config = options
        self._note = note
        self._run: wandb.Run | None = None
        self._rows: deque[dict[str, Any]] = deque(maxlen=ROWS)
        self._step = 0

    def start(self, total_steps: int, start_step: int) -> None:
        """Raises UserError where wandb cannot start, such as online without a login."""
        import wandb  # takes a second, and most runs do without

        config = self._config
        options, objective = config.wandb, config.objective
        try:
            self._run = wandb.init(
                project=options.project,
                entity=options.entity,
                group=options.group or "-".join(objective.words),
                tags=options.tags,
                name=self._folder.path.name,
                id=self._run_id(),
                resume="allow",
                mode=options.mode,
                dir=self._folder.path,
                config=config.model_dump(mode="json"),
                # Its console capture would wrap the live view, and its own lines would break it.
                settings=wandb.Settings(
                    console="off",
                    silent=options.mode == "offline",
                    quiet=True,
                    x_disable_meta=redacted(sys.argv) != sys.argv,  # it holds the command line
                ),
            )
        except (wandb.errors.Error, OSError) as error:
            reason = first_line(error).rstrip(".")
            raise UserError(f"wandb cannot start: {reason}; or set wandb.mode to offline") from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Metrics) -> None:
        self._send(step, metrics)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        kept = ({key: _cell(value) for key, value in row.items() if key not in PER_TOKEN} for row in rows)
        self._rows.extend({"step": step, **row} for row in kept)

    def weights(self, step: int, histogram: Mapping[str, Any]) -> None:
        import wandb

        values = {}
        for sign in ("positive", "negative"):
            if sum(counts := histogram[sign]):
                edges = [histogram["width"] * edge for edge in range(len(counts) + 1)]
                values[f"weights/{sign}_histogram"] = wandb.Histogram(np_histogram=(counts, edges))
        self._send(step, values)

    def evaluation(self, step: int, benchmark: str, summary: Mapping[str, Any]) -> None:
        """With several samples, Pass@1 is their mean, avg@n, and goes by that name too."""
        values = {name: summary[name] for name in ("pass_at_1", "low", "high", "format", "truncated", "tokens")}
        if summary["samples"] > 1:
            values[f"avg_at_{summary['samples']}"] = summary["pass_at_1"]
            values |= {f"pass_at_{k}": share for k, share in summary["pass_at_k"].items()}
        values |= {f"episodes/{name}": value for name, value in summary.get("episodes", {}).items()}
        for part, of_part in summary.get("parts", {}).items():
            values |= {f"{part}/{name}": of_part[name] for name in ("pass_at_1", "low", "high")}
        self._send(step, {f"eval/{benchmark}/{name}": value for name, value in values.items()})
        self._send_completions()

    def finish(self, state: State, reason: str | None) -> None:
        if self._run is None:
            return
        self._send_completions()
        self._run.summary.update({"state": state, "reason": reason})
        self._run.finish(exit_code=0 if state == "finished" else 1)
        if self._config.wandb.mode == "offline":
            self._note(
                f"to send the run to wandb: wandb sync {shlex.quote(str(self._folder.path))}/wandb/offline-run-*"
            )

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        """wandb drops a step that it has already, so the part that a resumed run repeats does not appear twice."""
        assert self._run is not None, "start comes first"
        self._step = step
        self._run.log({"step": step, **values}, step=step)

    def _send_completions(self) -> None:
        """Seldom and with a cap: each table is a file of its own."""
        import wandb

        if self._rows:
            columns = list(dict.fromkeys(name for row in self._rows for name in row))
            table = wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in self._rows])
            self._send(self._step, {"completions": table})
            self._rows.clear()

    def _run_id(self) -> str:
        """Kept in the run folder, so that a resumed run goes on as the same one."""
        path = self._folder.path / "wandb-id"
        if not path.exists():
            write_text_atomic(path, secrets.token_hex(4) + "\n")
        return path.read_text(encoding="utf-8").strip()


def _cell(value: Any) -> Any:
    """Return what a table has for a value: the turns of an episode as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
