"""Check of a run's files when it is resumed: they must contain everything that they contained when the checkpoint was saved.

A checkpoint records the size and the checksum of each file that grows with the run, and the rows of `eval/summary.json`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from sspo_cli.tracking.files import TEMPORARY, explain_os_errors, read_jsonl, write_jsonl_atomic
from sspo_cli.tracking.shapes import STEP_ROW

BLOCK = 1 << 24  # bytes


def record(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Flush existing files to the disk and describe them by name: `bytes`, `rows` and `checksum`.

    Raises UserError if a file cannot be flushed.
    """
    described: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.exists():
            with explain_os_errors("flush", path), path.open("rb") as file:
                os.fsync(file.fileno())
            described[path.name] = _describe(path, os.path.getsize(path))
    return described


def flush_folder(folder: Path) -> None:
    """Flush all files of a folder, and their names. Raises UserError if a file cannot be flushed.

    Temporary files are skipped: another thread may be replacing `status.json`, and flushes it itself.
    """
    with explain_os_errors("flush", folder):
        files = (path for path in folder.iterdir() if path.is_file() and not TEMPORARY.fullmatch(path.name))
        for path in (*files, folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def restore(path: Path, recorded: Mapping[str, Any] | None, step: int) -> str | None:
    """Restore a file of rows to its content at `step`; return a sentence if rows are lost, otherwise None.

    Later rows are dropped. If earlier content differs from the record, every distinct remaining row up to `step` is kept.
    Raises UserError if a line of the file is damaged, or if the file cannot be written.
    """
    if recorded is None:
        _keep_rows(path, step)
        return None
    size = recorded["bytes"]
    if path.exists() and os.path.getsize(path) >= size and _describe(path, size) == recorded:
        with explain_os_errors("write", path):
            os.truncate(path, size)
        return None
    _keep_rows(path, step)
    left = len(read_jsonl(path))
    return (
        f"{path} differs from its record in the checkpoint of step {step}: it has {left} of {recorded['rows']} rows up to this "
        "step; the run continues without the missing rows"
    )


def _keep_rows(path: Path, step: int) -> None:
    """Keep the distinct rows up to a step."""
    if path.exists():
        rows = {str(row): row for row in read_jsonl(path, STEP_ROW) if row["step"] <= step}
        write_jsonl_atomic(path, rows.values())


def _describe(path: Path, size: int) -> dict[str, Any]:
    """Describe the first `size` bytes of a file."""
    digest, rows, left = xxhash.xxh3_64(), 0, size
    with explain_os_errors("read", path), path.open("rb") as file:
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            rows += block.count(b"\n")
            left -= len(block)
    return {"bytes": size - left, "rows": rows, "checksum": digest.hexdigest()}
