"""Check and repair of a run's files on resume: they must still contain what they contained when the checkpoint was saved.

A checkpoint records the size and the checksum of each file that grows with the run, and the rows of `eval/summary.json`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from sspo_cli.errors import quantity
from sspo_cli.tracking.files import (
    TEMPORARY,
    explain_os_errors,
    read_json,
    read_jsonl,
    write_json_atomic,
    write_jsonl_atomic,
)
from sspo_cli.tracking.shapes import EVALUATIONS, STEP_ROW

BLOCK = 1 << 24  # bytes


def record(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Flush existing files to the disk. Returns {file name: {bytes, rows, checksum}}.

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
    """Flush all files of a folder and the folder's entries to the disk. Raises UserError if this fails.

    Temporary files are skipped, because they belong to another thread that is replacing and flushing `status.json`.
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
    """Restore a JSON-lines file to its content at `step`. Returns a warning if rows are lost, otherwise None.

    recorded  description of the file by `record` at `step`; None if the checkpoint has no such description

    Rows after `step` are removed. If the earlier content does not match `recorded`, or if `recorded` is None, duplicate rows
    are removed too. Raises UserError if a line of the file is damaged, or if the file cannot be written.
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
        f"{path} differs from its record in the checkpoint of step {step}: it has {left} of "
        f"{quantity(recorded['rows'], 'row')} up to this step; the run continues without the missing rows"
    )


def restore_measurements(
    summaries: Path, recorded: Sequence[Mapping[str, Any]] | None, step: int, run: Path
) -> list[str]:
    """Restore `eval/summary.json` to its content at `step`. Returns warnings about lost or repaired data.

    summaries  path of the file
    recorded   rows of the file that the checkpoint stores; None if the checkpoint does not store them
    run        folder of the run, for the messages

    Rows after `step` and duplicates are removed. If `recorded` is given, missing rows are restored. A measurement at `step`
    whose answers are incomplete is then removed, so that the resumed run repeats it. Raises UserError if a file is damaged or
    cannot be written.
    """
    existing = read_json(summaries, EVALUATIONS) if summaries.exists() else []
    existing = [row for row in existing if row["step"] <= step]
    rows = {_identity(row): row for row in existing}
    lost: list[str] = []
    if recorded is not None:
        expected = {_identity(row): dict(row) for row in recorded}
        if missing := expected.keys() - rows.keys():
            lost.append(f"{summaries} lacked {quantity(len(missing), 'measurement')}, restored from the checkpoint")
        if len(rows) < len(existing):
            duplicates = quantity(len(existing) - len(rows), "measurement")
            lost.append(f"{summaries} had {duplicates} twice; duplicates are removed")
        rows = expected | rows
        for identity in expected:
            if sentence := _incomplete(rows[identity], summaries.parent, run):
                lost.append(sentence)
                if rows[identity]["step"] == step:
                    del rows[identity]
    if rows or summaries.exists():
        write_json_atomic(summaries, list(rows.values()))
    return lost


def _keep_rows(path: Path, step: int) -> None:
    """Remove duplicate rows and rows after `step` from a file."""
    if path.exists():
        rows = {str(row): row for row in read_jsonl(path, STEP_ROW) if row["step"] <= step}
        write_jsonl_atomic(path, rows.values())


def _describe(path: Path, size: int) -> dict[str, Any]:
    """Return the number of bytes and rows, and the checksum, of the first `size` bytes of a file."""
    digest, rows, left = xxhash.xxh3_64(), 0, size
    with explain_os_errors("read", path), path.open("rb") as file:
        while left and (block := file.read(min(BLOCK, left))):
            digest.update(block)
            rows += block.count(b"\n")
            left -= len(block)
    return {"bytes": size - left, "rows": rows, "checksum": digest.hexdigest()}


def _incomplete(summary: Mapping[str, Any], folder: Path, run: Path) -> str | None:
    """Return a warning if `<benchmark>.jsonl` does not have each answer of a measurement exactly once, otherwise None.

    Also returns None if an older version wrote the summary, because it lacks the conditions that identify the answers.
    """
    if not {"n", "samples"} <= summary.keys():
        return None
    path = folder / f"{summary['benchmark']}.jsonl"
    named = {"benchmark": summary["benchmark"]}
    rows = [
        row
        for row in read_jsonl(path)
        if _identity({**row, **named, "prompt": row.get("template")}) == _identity(summary)
    ]
    distinct = {(str(row.get("id")), str(row.get("sample"))) for row in rows}
    expected = summary["n"] * summary["samples"]
    if len(rows) == len(distinct) == expected:
        return None
    return (
        f"{path} has {quantity(len(rows), 'row')} of step {summary['step']} instead of {expected}; `sspo eval {run} "
        f"-b {summary['benchmark']} --checkpoint {summary['step']}` measures it again if that checkpoint is there"
    )


def _identity(summary: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the key of a measurement: its benchmark, step, conditions and fingerprints."""
    names = ("benchmark", "step", "samples", "temperature", "max_new_tokens", "prompt", "identity")
    return tuple(summary.get(name) for name in names)
