"""The Weights & Biases sink: copies the run to the wandb server, or to the run folder for a later `wandb sync`."""

import json
import secrets
import shlex
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sspo_cli.config import RunOptions, WandbOptions
from sspo_cli.errors import UserError, first_line
from sspo_cli.redaction import redacted
from sspo_cli.tracking.files import write_text_atomic
from sspo_cli.tracking.run_folder import RunFolder, State
from sspo_cli.tracking.sink import Metrics, Sink

if TYPE_CHECKING:
    import wandb

ROWS = 64  # most completions in a table
PER_TOKEN = ("pieces", "weights", "written")  # fields of a completion that are not in the table


def check_wandb_options(options: WandbOptions) -> None:
    """Raise UserError for a name or a tag that wandb would refuse at the start of a run."""
    import wandb  # see `WandbSink.start`

    values = {"project": options.project, "entity": options.entity, "run_group": options.group}
    try:
        wandb.Settings(**values, run_tags=tuple(options.tags))
    except ValidationError as error:
        wrong = error.errors()[0]
        option = f"wandb.{str(wrong['loc'][0]).removeprefix('run_')}"
        raise UserError(
            f"{option} is not valid: {wrong['msg'].removeprefix('Value error, ')}; choose another"
        ) from None
    except wandb.errors.Error as error:
        raise UserError(f"wandb refuses its options: {first_line(error).rstrip('.')}; choose others") from None


class WandbSink(Sink):
    """Queues data for wandb's own process, which stores or sends the data. `note` prints a line for the user."""

    def __init__(self, run: RunFolder, options: RunOptions, note: Callable[[str], None]) -> None:
        self._folder = run
        self._config = options
        self._note = note
        self._run: wandb.Run | None = None
        self._rows: deque[dict[str, Any]] = deque(maxlen=ROWS)
        self._step = 0

    def start(self, total_steps: int, start_step: int) -> None:
        """Start wandb. Raises UserError if wandb cannot start, for example because the user is not logged in."""
        import wandb  # imported here, because the import takes a second and most runs do not use wandb

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
                # Capturing the console would interfere with the live view, and so would lines that wandb prints.
                settings=wandb.Settings(
                    console="off",
                    silent=options.mode == "offline",
                    quiet=True,
                    x_disable_meta=redacted(sys.argv) != sys.argv,  # the metadata contain the command line
                ),
            )
        except (wandb.errors.Error, OSError, ValueError) as error:
            reason = first_line(error).rstrip(".")
            raise UserError(f"wandb cannot start: {reason}; solve this, or set wandb.mode to offline") from error
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
        """Log the scores of a benchmark. If there are several samples per problem, Pass@1 is also logged as avg@n."""
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
        """Log values of a step. wandb ignores steps that it has already recorded, as after a resume."""
        assert self._run is not None, "start comes first"
        self._step = step
        self._run.log({"step": step, **values}, step=step)

    def _send_completions(self) -> None:
        """Log a table of the latest completions. Tables are small and infrequent, because each table is a separate file."""
        import wandb

        if self._rows:
            columns = list(dict.fromkeys(name for row in self._rows for name in row))
            table = wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in self._rows])
            self._send(self._step, {"completions": table})
            self._rows.clear()

    def _run_id(self) -> str:
        """Return the id of the wandb run. The run folder stores it, so that a resumed run continues the same wandb run."""
        path = self._folder.path / "wandb-id"
        if not path.exists():
            write_text_atomic(path, secrets.token_hex(4) + "\n")
        return path.read_text(encoding="utf-8").strip()


def _cell(value: Any) -> Any:
    """Convert a value for a table. Lists and dictionaries, such as the turns of an episode, become JSON strings."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
