"""Errors that end a run early, explained with a command that resumes the run."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import torch

from sspo_cli import ranks
from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError, command_line, first_line, says_disk_is_full, says_memory_is_full
from sspo_cli.interruption import Interrupted
from sspo_cli.tracking.run_folder import RunFolder

NAMED = ("`sspo train ", " -m sspo_cli -- train ")  # messages with one of these already have a command


@contextmanager
def explained_full_memory(folder: RunFolder, options: RunOptions) -> Iterator[None]:
    """Convert an out-of-memory exception on GPU or CPU to a UserError with a command that resumes with less memory."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, ValueError, OSError) as error:
        if not says_memory_is_full(error):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        memory = "the GPU is out of memory" if on_gpu else f"out of memory ({first_line(error)[:200]})"
        budget, rows = max(1, options.learning.token_budget // 2), max(1, options.rollout.max_rows // 2)
        less = ["-s", f"learning.token_budget={budget}", "-s", f"rollout.max_rows={rows}"]
        raise UserError(
            f"{memory}; {command_line(*folder.resume_command, *less)} resumes the run with less memory; "
            "model.gradient_checkpointing=true also saves memory; or start a new run with model.lora={rank: 16}, or with "
            f"{'' if ranks.size() > 1 else 'model.weights=bfloat16 and '}optimizer.eight_bit=true"
        ) from None


def record_failure(path: Path, reason: str) -> None:
    """Set the status of a run to `failed` if its process was killed, so that the status still is `running`."""
    folder = RunFolder(path)
    status = folder.status
    if status.get("state") == "running" and not folder.is_being_written():
        folder.write_status("failed", status["step"], status["steps"], reason)


def has_finished_since(path: Path, began: datetime) -> bool:
    """Report whether a run was finished at or after a time; False if it was finished before and is not extended yet."""
    status = RunFolder(path).status
    finished_at = datetime.fromisoformat(status["updated"]) if status.get("state") == "finished" else None
    return finished_at is not None and finished_at >= began.replace(microsecond=0)


@contextmanager
def explained_end(folder: RunFolder) -> Iterator[None]:
    """Add the command that resumes the run to the message of an exception that ends the run early.

    UserErrors are unchanged if the run has not begun or is finished, or if the message already has a command.
    """
    command = command_line(*folder.resume_command)
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"{error}; {command} continues the run") from None
    except KeyboardInterrupt:
        if not folder.begun:
            raise Interrupted("stopped before the run began; nothing is written") from None
        raise Interrupted(
            f"stopped without saving the state; {command} continues the run from its last checkpoint"
        ) from None
    except UserError as error:
        if isinstance(error, ranks.LostRank):
            record_failure(folder.path, str(error))
        if any(part in str(error) for part in NAMED) or not folder.begun:
            raise
        if folder.status.get("state") == "finished":  # the extension of a finished run was refused
            raise
        condition = "once there is room, " if says_disk_is_full(error) else ""
        raise type(error)(f"{error}; {condition}{command} continues the run") from error
    except Exception as error:
        error.add_note(f"sspo: {command} continues the run from its last checkpoint")
        raise
