"""Find the runs, checkpoints and measured models that a user names on the command line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sspo_cli.errors import LONGEST_PATH, UserError
from sspo_cli.policy.checkpoint import NAME, checkpoint_folders, is_whole, latest_whole
from sspo_cli.tracking.files import read_json
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import BEST

NAMED = 5  # runs in a message


@dataclass(frozen=True, slots=True)
class Named:
    """A run, and the checkpoint of it if that was named.

    folder      of the run
    checkpoint  its folder, or None
    """

    folder: Path
    checkpoint: Path | None = None


def find_run(name: str, runs_dir: Path) -> Named | None:
    """Find a run, or a checkpoint of one, by its path or by its path in the folder of runs; None if there is none.

    Raises UserError for a name that no file can have.
    """
    if not name:
        raise UserError("the name of a run is empty")
    if len(name) > LONGEST_PATH or "\0" in name:
        raise UserError(f"there is no run {name!r}")
    for path in (Path(name), runs_dir / name):
        if is_run(path):
            return Named(path)
        of_a_run = path.parent.name == "checkpoints" and is_run(path.parent.parent)
        if of_a_run and NAME.fullmatch(path.name) and path.is_dir():
            return Named(path.parent.parent, path)
    return None


def is_run(path: Path) -> bool:
    """Report whether a folder is a run's, damaged or not; the folder of a model has a config.json too."""
    return (path / "checkpoints").is_dir() or ((path / "config.json").is_file() and (path / "status.json").is_file())


def require_run(name: str, runs_dir: Path) -> Path:
    """Find a run's folder. Raises UserError if there is none, and for the name of a checkpoint or of a folder of runs."""
    found = find_run(name, runs_dir)
    if found is None:
        raise UserError(f"there is no run {name} in {runs_dir}{_below(name, runs_dir)}")
    if found.checkpoint:
        raise UserError(f"{name} is a checkpoint; name the run, {found.folder}")
    return found.folder


def _below(name: str, runs_dir: Path) -> str:
    """Return the end of a sentence that names the runs in a folder of runs, or those that there are."""
    for path in (Path(name), runs_dir / name):
        if runs := list(_runs_in(path)):
            more = ", …" if len(runs) > NAMED else ""
            return f"; {path} is a folder of runs: {', '.join(map(str, runs[:NAMED]))}{more}"
    return ""


def _runs_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if is_run(path))


def checkpoint_of(run: RunFolder, which: str) -> Path:
    """Find a checkpoint of a run: last, best or a step. Raises UserError if the run does not have it, or it is damaged."""
    if which == "last":
        newest, _ = latest_whole(run.checkpoints)
        if newest is None:
            raise UserError(f"run {run.path} has no whole checkpoint")
        return newest
    if which == "best":
        if not run.best_path.exists():
            raise UserError(
                f"run {run.path} has chosen no best checkpoint; it would need evaluation.validation, problems held out for that"
            )
        which = str(read_json(run.best_path, BEST)["step"])
    folder = run.checkpoints / f"step-{which}"
    if not folder.is_dir():
        steps = ", ".join(path.name.removeprefix("step-") for path in checkpoint_folders(run.checkpoints))
        raise UserError(
            f"run {run.path} has no checkpoint {which}; use last, best or one of its steps: {steps or 'none'}"
        )
    return whole(folder)


def whole(checkpoint: Path) -> Path:
    """Return the checkpoint. Raises UserError if it is damaged."""
    if not is_whole(checkpoint):
        raise UserError(f"checkpoint {checkpoint} is damaged")
    return checkpoint


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint is of."""
    return int(checkpoint.name.removeprefix("step-"))


def model_folder(model: str, runs_dir: Path) -> Path:
    """Return where the measurements of a model that no run has made are kept."""
    return runs_dir / f"model-{model.strip('/').replace('/', '-')}"
