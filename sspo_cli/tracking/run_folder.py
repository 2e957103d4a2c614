"""The run folder, the complete record of a run."""

import errno
import os
import shutil
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from filelock import FileLock

from sspo_cli import ranks
from sspo_cli.config import VALIDATION, RunOptions, validate
from sspo_cli.errors import UserError
from sspo_cli.launchers import starting_words
from sspo_cli.locks import take_lock
from sspo_cli.redaction import redacted
from sspo_cli.tracking.files import (
    explain_os_errors,
    read_json,
    read_jsonl,
    remove_leftovers,
    write_bytes_atomic,
    write_json_atomic,
)
from sspo_cli.tracking.measurement import comparable
from sspo_cli.tracking.program import describe_program
from sspo_cli.tracking.records import flush_folder, record, restore, restore_measurements
from sspo_cli.tracking.shapes import CONFIG, EVALUATIONS, METRICS, STATUS, WEIGHTS

State = Literal["running", "finished", "failed", "interrupted"]


class RunFolder:
    """The files of a run. If there are several ranks, only the first writes, but all ranks must call the methods that write.

    `create` and `resume` acquire the run's lock, and `close` or the end of a `with` block releases it. `open` is for reading.

    config.json        options, package versions, git revision, command line
    status.json        state, step, steps, reason, pid, started, updated
    metrics.jsonl      one object for each optimizer step
    completions.jsonl  sampled completions with their rewards and the weights of their tokens
    weights.jsonl      histograms of the token weights, one object for each optimizer step
    console.log        console output of all starts of the run
    checkpoints/       folders step-N, written by `sspo_cli.policy`, and best.json
    questions.bin      hash of each training question, by which `sspo eval` finds training questions in a benchmark
    eval/              summary.json and one file for each benchmark, written by `sspo_cli.evaluation.summary`
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.json"
        self.status_path = path / "status.json"
        self.metrics_path = path / "metrics.jsonl"
        self.completions_path = path / "completions.jsonl"
        self.weights_path = path / "weights.jsonl"
        self.log_path = path / "console.log"
        self.checkpoints = path / "checkpoints"
        self.best_path = self.checkpoints / "best.json"
        self.eval = path / "eval"
        self.summary_path = self.eval / "summary.json"
        self.questions_path = path / "questions.bin"
        self.begun = True  # False while a new run may still be refused; the caller sets it
        self._made: list[Path] = []  # folders that `create` made; the first is the run folder
        self._lock = FileLock(path / ".lock")

    @classmethod
    def create(
        cls, path: Path, config: RunOptions, command: Sequence[str], about: Mapping[str, Any] | None = None
    ) -> Self:
        """Create a run folder, acquire its lock, and write `config.json` and `status.json`.

        about  additional entries of `config.json`

        A run that failed before its first step is replaced. Raises UserError if the folder has other content, is being written
        by another process, or cannot be written.
        """
        run = cls(path)
        ranks.on_first(lambda: run._create(config, command, about or {}))
        return run

    def _create(self, config: RunOptions, command: Sequence[str], about: Mapping[str, Any]) -> None:
        path = self.path
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        with explain_os_errors("create", path):
            path.mkdir(parents=True, exist_ok=True)
        self._acquire()  # before the check, so that only one of two processes can create the run
        try:
            check_free(path)
            content = {
                "options": redacted(config.model_dump(mode="json")),
                "command": redacted(list(command)),
                "created": _now(),
                **describe_program(),
                **about,
            }
            write_json_atomic(self.config_path, content)
            self.write_status("running", 0, config.steps)
            with explain_os_errors("create", path):
                self.checkpoints.mkdir(exist_ok=True)
                self.eval.mkdir(exist_ok=True)
        except BaseException:
            self.begun = False
            self.close()
            raise

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing run for reading. Raises UserError if there is no run or if its `config.json` is unreadable."""
        run = cls(path)
        if not run.config_path.is_file():
            raise UserError(f"there is no run {path}: a run folder has a config.json")
        run.config  # noqa: B018  read now, so that a damaged file is reported at once
        return run

    @classmethod
    def resume(cls, path: Path) -> Self:
        """Open an existing run for resuming, and acquire its lock.

        Raises UserError in the same cases as `open`, and if another process writes the run.
        """
        run = cls.open(path)
        ranks.on_first(run._acquire)
        return run

    @cached_property
    def config(self) -> RunOptions:
        """Options of the run. Raises UserError if `config.json` is unreadable or its options are invalid in this version."""
        options = read_json(self.config_path, CONFIG)["options"]
        if isinstance(evaluation := options.get("evaluation"), dict):
            evaluation.setdefault("decontaminate", False)  # versions without this option did not remove problems
        try:
            return validate(options)
        except UserError as error:
            raise UserError(f"{self.config_path} does not fit this version of sspo: {error}") from None

    def change(self, config: RunOptions, after: str | None, changes: Sequence[str]) -> None:
        """Replace the options of a resumed run in `config.json`, and record the change there.

        config   new options
        after    name of the checkpoint that the run resumes from; None if there is no checkpoint
        changes  descriptions of the changed options

        If the number of steps changes after a checkpoint, an extension of the run is recorded too. Raises UserError if the file
        cannot be written.
        """

        def write() -> None:
            content = read_json(self.config_path, CONFIG)
            step = int(after.removeprefix("step-")) if after else 0
            if step and config.steps != self.config.steps:
                extension = {"after": step, "steps": [self.config.steps, config.steps]}
                content.setdefault("extended", []).append(extension)
            content["options"] = redacted(config.model_dump(mode="json"))
            content.setdefault("changes", []).append({"after": after, "changed": list(changes)})
            write_json_atomic(self.config_path, content)

        ranks.on_first(write)
        vars(self).pop("config", None)  # clears the cache, so that the options are read again

    @property
    def extended(self) -> list[dict[str, Any]]:
        """Extensions of the run in order: step `after` which it was extended, and `steps`, its old and new number of steps."""
        return read_json(self.config_path, CONFIG).get("extended", [])

    @property
    def origin(self) -> dict[str, Any]:
        """Entries `origin` (the run that this run was forked from) and `extended` of `config.json`, if present."""
        about = read_json(self.config_path, CONFIG)
        return {name: about[name] for name in ("extended", "origin") if name in about}

    @property
    def name_in_commands(self) -> str:
        """Path of the run as an argument of commands; it never begins with a hyphen."""
        return f"./{self.path}" if str(self.path).startswith("-") else str(self.path)

    @property
    def resume_command(self) -> list[str]:
        """Command that resumes the run, as a list of arguments."""
        program, several = starting_words(os.environ)
        return [*program, "train", "--resume", "--run", self.name_in_commands, *several]

    @property
    @ranks.by_first
    def data(self) -> dict[str, Any]:
        """Description of the training problems in `config.json`; empty if an older version wrote the run.

        Raises UserError if the file is unreadable.
        """
        return read_json(self.config_path, CONFIG).get("data", {})

    @ranks.by_first
    def note_data(self, data: Mapping[str, Any], questions: Iterable[int]) -> None:
        """Record the training problems of the run.

        data       number of problems, fingerprint, overlaps with benchmarks and problems left out; replaces `data` in
                   `config.json`
        questions  keys of the training questions; added to the keys in `questions.bin`

        Raises UserError if a file cannot be written.
        """
        write_json_atomic(self.config_path, {**read_json(self.config_path, CONFIG), "data": dict(data)})
        keys = array("Q", sorted({*questions, *(self.questions() or ())}))
        write_bytes_atomic(self.questions_path, keys.tobytes())

    def questions(self) -> set[int] | None:
        """Return the keys of the training questions, or None if the run has no `questions.bin`.

        Raises UserError if the file is unreadable.
        """
        if not self.questions_path.exists():
            return None
        keys = array("Q")
        with explain_os_errors("read", self.questions_path):
            content = self.questions_path.read_bytes()
        if len(content) % keys.itemsize:
            raise UserError(
                f"{self.questions_path} is damaged; delete it to continue without a record of the training questions"
            )
        keys.frombytes(content)
        return set(keys)

    @ranks.by_first
    def note_resume(self, command: Sequence[str], after: str | None, lost: Sequence[str]) -> list[str]:
        """Record a resume in the list `resumed` of `config.json`, with its time and the current program.

        command  command line
        after    name of the checkpoint that the run resumes from; None if there is no checkpoint
        lost     warnings that `truncate` returned

        Returns the changes of the program since the last start, such as `torch: 2.7.0 -> 2.8.0`. Raises UserError if the file
        cannot be written.
        """
        about, now = read_json(self.config_path, CONFIG), describe_program()
        before = {"revision": None, "packages": {}, **about, **(about.get("resumed") or [{}])[-1]}
        old, new = ({"revision": each["revision"], **each["packages"]} for each in (before, now))
        changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
        start = {"at": _now(), "after": after, "command": redacted(list(command)), **now, "lost": list(lost)}
        about.setdefault("resumed", []).append(start)
        write_json_atomic(self.config_path, about)
        return changed

    @property
    def status(self) -> dict[str, Any]:
        """Content of `status.json`; empty if there is no such file. Raises UserError if the file is unreadable."""
        return read_json(self.status_path, STATUS) if self.status_path.exists() else {}

    def write_status(self, state: State, step: int, steps: int, reason: str | None = None) -> None:
        """Replace `status.json`, except for the time of the first start. Raises UserError if the file cannot be written."""
        assert state in get_args(State), state
        now = _now()
        status = {
            "state": state,
            "step": step,
            "steps": steps,
            "reason": redacted(reason),
            "pid": os.getpid(),
            "started": self.status.get("started", now),
            "updated": now,
        }
        write_json_atomic(self.status_path, status)

    def metrics(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl`, which has a row for each optimizer step. Raises UserError if the file is damaged."""
        rows = read_jsonl(self.metrics_path, METRICS)
        for before, row in pairwise(rows):
            if row["step"] <= before["step"]:
                raise UserError(f"{self.metrics_path} is damaged: step {row['step']} follows step {before['step']}")
        return rows

    def completions(self) -> list[dict[str, Any]]:
        """Read the recorded completions. Raises UserError if the file is damaged."""
        return read_jsonl(self.completions_path)

    def weights(self) -> list[dict[str, Any]]:
        """Read the histograms of token weights, one for each optimizer step. Raises UserError if the file is damaged."""
        rows = read_jsonl(self.weights_path, WEIGHTS)
        if len({(row["width"], len(row["positive"]), len(row["negative"])) for row in rows}) > 1:
            raise UserError(f"{self.weights_path} is damaged: the bins differ between rows")
        return rows

    @ranks.by_first
    def evaluations(self) -> list[dict[str, Any]]:
        """Read the rows of `eval/summary.json`; empty if there is no such file. Raises UserError if the file is unreadable."""
        return read_json(self.summary_path, EVALUATIONS) if self.summary_path.exists() else []

    @ranks.by_first
    def record(self) -> dict[str, Any]:
        """Flush all files to the disk. Returns a description of the files for a checkpoint.

        `truncate` uses the description to check that the files are complete. Raises UserError if a file cannot be flushed.
        """
        recorded = {"rows": record(self._growing), "evaluations": self.evaluations()}
        for folder in (self.path, self.eval):
            flush_folder(folder)
        return recorded

    @ranks.by_first
    def truncate(self, step: int, recorded: Mapping[str, Any] | None = None) -> list[str]:
        """Remove metrics, completions, weights and evaluations after `step`, to resume the run from that step's checkpoint.

        recorded  description of the files in the checkpoint, by `record`; None if there is no checkpoint or no description

        Returns warnings about lost or repaired data (see `restore` and `restore_measurements`). Raises UserError if a file is
        damaged or cannot be written.
        """
        files = recorded["rows"] if recorded else {}
        lost = [restore(path, files.get(path.name), step) for path in self._growing]
        lost += restore_measurements(self.summary_path, recorded["evaluations"] if recorded else None, step, self.path)
        self.choose_best()
        return [sentence for sentence in lost if sentence]

    @property
    def _growing(self) -> list[Path]:
        return [self.metrics_path, self.completions_path, self.weights_path]

    @ranks.by_first
    def choose_best(self) -> int | None:
        """Write `checkpoints/best.json`: the existing checkpoint with the highest Pass@1 on the validation problems.

        If several checkpoints have the same score, the earliest is chosen. Only comparable measurements are used (see
        `comparable`). Returns the step of the best checkpoint. If no checkpoint has a validation, removes the file and returns
        None. Raises UserError if the file cannot be written.
        """
        measured = [row for row in self.evaluations() if row["benchmark"] == VALIDATION and "pass_at_1" in row]
        present = [row for row in comparable(measured) if (self.checkpoints / f"step-{row['step']}").is_dir()]
        if not present:
            self.best_path.unlink(missing_ok=True)
            return None
        best = max(present, key=lambda row: (row["pass_at_1"], -row["step"]))
        write_json_atomic(self.best_path, {name: best.get(name) for name in ("step", "pass_at_1", "n")})
        return best["step"]

    def came_to_nothing(self) -> bool:
        """Report whether the run failed before its first step or was killed while it was created; a new run may replace it."""
        if {entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")} == {self.config_path.name}:
            try:
                return self.config is not None
            except UserError:  # the config.json of a model
                return False
        return self.status.get("state") == "failed" and self.status["step"] == 0 and not self.metrics_path.exists()

    def is_being_written(self) -> bool:
        """Report whether a process holds the lock. A run with the status `running` whose lock is free was killed."""
        if not self._lock.is_locked and os.access(self._lock.lock_file, os.W_OK):
            if not take_lock(self._lock):
                return True
            self._lock.release()
        return self._lock.is_locked

    def close(self) -> None:
        """Release the lock. If `begun` is false, remove the folders that `create` made."""
        if not self.begun and self.path in self._made:
            shutil.rmtree(self.path, ignore_errors=True)
            for folder in self._made[1:]:
                with suppress(OSError):  # the folder now contains another run
                    folder.rmdir()
        self._lock.release()

    def check_unwritten(self) -> None:
        """Raise UserError if another process writes the run."""
        if self.is_being_written():
            raise UserError(f"run {self.path} is being written by another process; wait for it or choose another --run")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _acquire(self) -> None:
        with explain_os_errors("lock", self.path):
            taken = take_lock(self._lock)
        if not taken:
            raise UserError(f"run {self.path} is being written by another process; wait for it or choose another --run")
        ranks.announce_folder(self.path)
        with explain_os_errors("clean", self.path):
            for folder in (self.path, self.checkpoints):
                remove_leftovers(folder)


def check_free(path: Path) -> None:
    """Raise UserError if a new run cannot be created at `path`.

    It has content, it is in the folder of another run, or it cannot be written.
    """
    with explain_os_errors("create", path):
        for folder in path.absolute().parents:
            if (folder / "config.json").is_file() and (folder / "status.json").is_file():
                raise UserError(f"{path} would be in the folder of run {folder}; choose another --runs-dir")
        is_empty = not path.exists() or all(entry.name.startswith(".") for entry in path.iterdir())
        above = next(folder for folder in (path, *path.parents) if folder.exists())
        if not is_empty and not RunFolder(path).came_to_nothing():
            raise UserError(f"run {path} exists; choose another --run or add --resume")
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(above, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
