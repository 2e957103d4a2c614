"""The problems that an unfinished measurement has done, kept in `partial/`, so that it continues with the others."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock

from sspo_cli import ranks
from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import Benchmark, Conditions
from sspo_cli.evaluation.identity import Identity
from sspo_cli.locks import take_lock
from sspo_cli.tracking.files import explain_os_errors, read_jsonl, truncate_jsonl
from sspo_cli.tracking.shapes import PARTIAL_PROBLEM

ABANDONED = 7 * 86_400  # seconds


def partial_path(folder: Path, benchmark: Benchmark, conditions: Conditions, identity: Identity, model: str) -> Path:
    """Return the file of finished problems, whose name depends on everything that determines the graded completions.

    model  fingerprint of the policy, so that no other model continues with its completions
    """
    order = [prompt.problem.id for prompt in benchmark.prompts]
    done_with = ["problem by problem", model, asdict(conditions), identity.digest, benchmark.split, order]
    key = xxhash.xxh3_64_hexdigest(json.dumps(done_with).encode())
    return folder / "partial" / f"{benchmark.name}-{key}.jsonl"


@contextmanager
def problems_done(partial: Path | None) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """Yield the rows of each whole problem in the file, by its place; no other process may write the file meanwhile."""
    if partial is None:
        yield {}
        return
    if not ranks.is_first():
        yield ranks.on_first(dict[int, list[dict[str, Any]]])  # those that the first rank has read
        return
    lock = FileLock(partial.with_name(f".{partial.name}.lock"))

    def open_problems() -> dict[int, list[dict[str, Any]]]:
        with explain_os_errors("write", partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
        if not take_lock(lock):
            raise UserError(
                f"{partial.stem.rpartition('-')[0]} is being measured by another process with the same model and conditions "
                f"(its work is {partial}); wait for it"
            )
        truncate_jsonl(partial, lambda problem: True)  # a problem that a kill has torn would run into the next one
        return {problem["place"]: problem["rows"] for problem in read_jsonl(partial, PARTIAL_PROBLEM)}

    try:
        yield ranks.on_first(open_problems)
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def remove_abandoned(partial: Path) -> None:
    """Remove what no process is at and none has added to for a week: its model has trained on, or was deleted.

    Problems, and what a kill has left of them: a lock without problems, or a temporary file.
    """
    for path in partial.glob("*"):
        with suppress(FileNotFoundError):  # another process removes the same
            if time.time() - path.stat().st_mtime <= ABANDONED:
                continue
            lock = FileLock(path if path.suffix == ".lock" else path.with_name(f".{path.name}.lock"))
            if take_lock(lock):
                path.unlink(missing_ok=True)
                Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()
