"""Finished problems of an interrupted measurement, stored in `partial/`, so that it continues with the others."""

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

    model  fingerprint of the policy, so that completions of different models are not mixed
    """
    order = [prompt.problem.id for prompt in benchmark.prompts]
    done_with = ["problem by problem", model, asdict(conditions), identity.digest, benchmark.split, order]
    key = xxhash.xxh3_64_hexdigest(json.dumps(done_with).encode())
    return folder / "partial" / f"{benchmark.name}-{key}.jsonl"


@contextmanager
def problems_done(partial: Path | None) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """Yield the rows of each finished problem in the file, by its index; hold the lock of the file within the block."""
    if partial is None:
        yield {}
        return
    if not ranks.is_first():
        yield ranks.on_first(dict[int, list[dict[str, Any]]])  # receives what the first rank has read
        return
    lock = FileLock(partial.with_name(f".{partial.name}.lock"))

    def open_problems() -> dict[int, list[dict[str, Any]]]:
        with explain_os_errors("write", partial):
            partial.parent.mkdir(parents=True, exist_ok=True)
        if not take_lock(lock):
            raise UserError(
                f"{partial.stem.rpartition('-')[0]} is being measured by another process with the same model and conditions "
                f"(its results are in {partial}); wait for it"
            )
        truncate_jsonl(partial, lambda problem: True)  # removes a last line that a kill has cut off
        return {problem["place"]: problem["rows"] for problem in read_jsonl(partial, PARTIAL_PROBLEM)}

    try:
        yield ranks.on_first(open_problems)
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def remove_abandoned(partial: Path) -> None:
    """Remove files that no process uses and that have not changed for a week, because their model has changed or is gone.

    These are finished problems, and lock files and temporary files that a killed process has left.
    """
    for path in partial.glob("*"):
        with suppress(FileNotFoundError):  # another process may remove the same file
            if time.time() - path.stat().st_mtime <= ABANDONED:
                continue
            lock = FileLock(path if path.suffix == ".lock" else path.with_name(f".{path.name}.lock"))
            if take_lock(lock):
                path.unlink(missing_ok=True)
                Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()
