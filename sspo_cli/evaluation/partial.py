"""Storage of finished problems in `partial/`, so that an interrupted measurement continues with the remaining problems."""

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

ABANDONED = 7 * 86_400  # seconds without a change after which a file is removed


def partial_path(folder: Path, benchmark: Benchmark, conditions: Conditions, identity: Identity, model: str) -> Path:
    """Return the path of the file of finished problems.

    model  fingerprint of the policy

    The file name contains a hash of everything that determines the graded completions, so that completions of different models
    or conditions are not mixed.
    """
    order = [prompt.problem.id for prompt in benchmark.prompts]
    done_with = ["problem by problem", model, asdict(conditions), identity.digest, benchmark.split, order]
    key = xxhash.xxh3_64_hexdigest(json.dumps(done_with).encode())
    return folder / "partial" / f"{benchmark.name}-{key}.jsonl"


@contextmanager
def problems_done(partial: Path | None) -> Iterator[dict[int, list[dict[str, Any]]]]:
    """Lock the file of finished problems within the block. Yields {index of the problem: its rows}.

    If `partial` is None, yields an empty dict. Raises UserError if another process holds the lock.
    """
    if partial is None:
        yield {}
        return
    if not ranks.is_first():
        yield ranks.on_first(dict[int, list[dict[str, Any]]])  # receives the rows that the first rank has read
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
        truncate_jsonl(partial, lambda problem: True)  # removes a truncated last line
        return {problem["place"]: problem["rows"] for problem in read_jsonl(partial, PARTIAL_PROBLEM)}

    try:
        yield ranks.on_first(open_problems)
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def remove_abandoned(partial: Path) -> None:
    """Remove files in the folder `partial` that have not changed for a week and that no process uses.

    These are files of finished problems that were never continued, and lock files and temporary files of killed processes.
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
