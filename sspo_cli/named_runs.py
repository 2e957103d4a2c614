"""Find the runs, checkpoints and measured models that a user names on the command line."""

import itertools
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sspo_cli.config import RunOptions
from sspo_cli.errors import LONGEST_PATH, UserError, command_line
from sspo_cli.policy.checkpoint import NAME, checkpoint_folders, is_whole, latest_whole
from sspo_cli.tracking.files import read_json
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.shapes import BEST

NAMED = 5  # most runs listed in a message


@dataclass(frozen=True, slots=True)
class Named:
    """A run or a checkpoint that a user named.

    folder      folder of the run
    checkpoint  folder of the checkpoint; None if the run itself was named
    """

    folder: Path
    checkpoint: Path | None = None


def find_run(name: str, runs_dir: Path) -> Named | None:
    """Find the run or the checkpoint with this name.

    A run is named by its path, or by its path inside `runs_dir`. A checkpoint is named by its path or as RUN@STEP, in which
    STEP is a step, `last` or `best`. Returns None if there is no such run. Raises UserError if no file can have this name, if
    it names a folder of runs, or if the run does not have the checkpoint.
    """
    named = _find(name, runs_dir)
    if named is None:
        for path in (Path(name), runs_dir / name):
            if (path / "config.json").is_file():  # a model
                break
            if runs := _runs_in(path):
                more = ", …" if len(runs) > NAMED else ""
                raise UserError(
                    f"{path} is a folder of runs, not a run; name one of them: {', '.join(map(str, runs[:NAMED]))}{more}"
                )
    return named


def _find(name: str, runs_dir: Path) -> Named | None:
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
    run, at, which = name.rpartition("@")
    is_a_path = any(path.exists() for path in (Path(name), runs_dir / name))
    named = _find(run, runs_dir) if at and run and not is_a_path else None
    if named is None:
        return None
    if named.checkpoint:
        raise UserError(f"{name} names two checkpoints; leave out @{which} or name the run")
    if not which:
        raise UserError(f"{name} has no checkpoint after the @; write {run}@last, {run}@best or {run}@STEP")
    return Named(named.folder, checkpoint_of(RunFolder.open(named.folder), which))


def free_name(runs_dir: Path, options: RunOptions) -> str:
    """Return an unused name for a run: `sspo-atanlog-seed0`, or this name with a number appended."""
    words = [*options.objective.words, f"seed{options.seed}"]
    name = "-".join(words).replace(":", ".")
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if not (runs_dir / candidate).exists())


def is_run(path: Path) -> bool:
    """Report whether a folder is a run's, damaged or not. A config.json is not enough: model folders also have one."""
    return (path / "checkpoints").is_dir() or ((path / "config.json").is_file() and (path / "status.json").is_file())


def _runs_in(folder: Path, levels: int = 2) -> list[Path]:
    """Return the runs in a folder and in its sub-folders, because the trials of a sweep are in a sub-folder."""
    runs = []
    with suppress(OSError):  # not a folder, or one that may not be read
        for path in sorted(folder.iterdir()):
            if is_run(path):
                runs.append(path)
            elif levels > 1:
                runs += _runs_in(path, levels - 1)
    return runs


def require_run(name: str, runs_dir: Path) -> Path:
    """Find a run's folder. Raises UserError if there is none, and for the name of a checkpoint or of a folder of runs."""
    found = find_run(name, runs_dir)
    if found is None:
        raise UserError(f"there is no run {name} in {runs_dir}")
    if found.checkpoint:
        fork = command_line("sspo", "train", "--from", name)
        raise UserError(
            f"{name} is a checkpoint, and a run is resumed from its last one; name the run, {found.folder}, or start a new run "
            f"from the checkpoint: {fork}"
        )
    return found.folder


def require_sources(names: Sequence[str], runs_dir: Path) -> list[Path]:
    """Find the sources of a report: runs, measured models, and folders of them, by path, as given or inside `runs_dir`.

    A measured model may also be given by the name that was passed to `sspo eval`. Raises UserError if a name is none of
    these, if it names a checkpoint, or if a run has no config.json or status.json.
    """
    return [_require_source(name, runs_dir) for name in names]


def _require_source(name: str, runs_dir: Path) -> Path:
    if named := _find(name, runs_dir):
        if named.checkpoint:
            raise UserError(
                f"{name} is a checkpoint, and a report covers whole runs; name the run, {named.folder}, with --select best for "
                "its best checkpoint in the tables"
            )
        for file in ("config.json", "status.json"):
            if not (named.folder / file).exists():
                raise UserError(f"run {named.folder} has no {file}, so it cannot be reported; leave it out")
        return named.folder
    for path in (Path(name), runs_dir / name, model_folder(name, runs_dir)):
        if find_runs([path]):
            return path
    if existing := [path for path in (Path(name), runs_dir / name) if path.exists()]:
        raise UserError(f"there are no runs in {existing[0]}, and no measured models")
    raise UserError(f"there is no run, measured model or folder of runs {name}, here or in {runs_dir}")


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Find the folders of runs and of measured models in `paths` and below them, each once.

    A run has config.json and status.json (model folders have a config.json too); a measured model has model.json and eval/.
    Folders within them are not searched.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        for folder, below, files in os.walk(path):
            names = {*files, *below}  # a folder in place of a file means a damaged run
            if {"config.json", "status.json"} <= names or {"model.json", "eval"} <= names:
                folders.setdefault(Path(folder).resolve(), Path(folder))
                below.clear()
            below.sort()
    return list(folders.values())


def checkpoint_of(run: RunFolder, which: str) -> Path:
    """Find a checkpoint of a run: last, best or a step. Raises UserError if the checkpoint is missing or damaged."""
    if which == "last":
        newest, _ = latest_whole(run.checkpoints)
        if newest is None:
            raise UserError(f"run {run.path} has no complete checkpoint")
        return newest
    if which == "best":
        if not run.best_path.exists():
            raise UserError(
                f"run {run.path} has no best checkpoint; runs choose one by held-out problems, see evaluation.validation"
            )
        which = str(read_json(run.best_path, BEST)["step"])
    folder = run.checkpoints / f"step-{which}"
    if not folder.is_dir():
        steps = ", ".join(path.name.removeprefix("step-") for path in checkpoint_folders(run.checkpoints))
        available = f"use last, best or one of its steps: {steps}" if steps else "it has not saved any yet"
        raise UserError(f"run {run.path} has no checkpoint {which}; {available}")
    return whole(folder)


def whole(checkpoint: Path) -> Path:
    """Return the checkpoint. Raises UserError if it is damaged."""
    if not is_whole(checkpoint):
        raise UserError(f"checkpoint {checkpoint} is damaged; use an earlier one")
    return checkpoint


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def model_folder(model: str, runs_dir: Path) -> Path:
    """Return the folder for the measurements of a model outside a run."""
    return runs_dir / f"model-{model.strip('/').replace('/', '-')}"
