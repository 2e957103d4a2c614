"""Overview of the runs in a folder and its subfolders: state, step, remaining time, last score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.text import duration
from sspo_cli.tracking.time_left import time_left_of

SKIPPED = ("checkpoints", "eval", "cold-starts", "rollouts")  # folders that contain no runs


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of `sspo ls`. If a folder cannot be read, `state` contains the error message."""

    name: str
    state: str
    step: str = ""
    left: str = ""
    score: str = ""


def list_runs(runs_dir: Path) -> Iterator[Listed]:
    """Yield a row for each run in a folder and its subfolders, including damaged runs, sorted by name."""
    for path in _run_folders(runs_dir):
        name = str(path.relative_to(runs_dir)) if path != runs_dir else path.name
        try:
            yield _describe(name, RunFolder(path))
        except UserError as error:
            yield Listed(name, f"damaged: {error}")


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yield the folder itself or its subfolders, at any depth, that have a `config.json` or a `status.json`."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name not in SKIPPED)
    except OSError:
        entries = []
    if (folder / "config.json").exists() or (folder / "status.json").exists():
        yield folder
        return
    for entry in entries:
        if not entry.name.startswith(".") and not entry.is_symlink():
            yield from _run_folders(entry)


def _describe(name: str, run: RunFolder) -> Listed:
    """Return the row of a run. Raises UserError if a file of the run is damaged."""
    status = run.status
    state = str(status.get("state", "not started"))
    if state == "running" and not run.is_being_written():
        state = "killed"
    step, steps = status.get("step", 0), status.get("steps", run.config.steps)
    every, left = run.config.evaluation.every, None
    if state in ("running", "killed"):  # status.json may be a few steps behind
        rows = run.metrics()
        step = rows[-1]["step"] if rows else step
        left = time_left_of(rows, steps, every) if state == "running" else None
    score = _last_score(run.evaluations())
    return Listed(name, state, f"{step}/{steps}", "" if left is None else duration(left), score)


def _last_score(rows: Sequence[dict[str, Any]]) -> str:
    """Format Pass@1 on each benchmark at the last measured step: `arithmetic 98.2 % at step 100`."""
    measured = [row for row in rows if "pass_at_1" in row]
    last = max((row["step"] for row in measured), default=None)
    scores = {row["benchmark"]: row["pass_at_1"] for row in measured if row["step"] == last}
    text = ", ".join(f"{benchmark} {100 * score:.1f} %" for benchmark, score in scores.items())
    return f"{text} at step {last}" if scores else ""
