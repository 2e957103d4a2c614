"""Failures of the machine in the middle of a run, and how it continues after them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sspo_cli.errors import UserError, first_line, says_disk_is_full, says_memory_is_full
from sspo_cli.tracking.run_folder import RunFolder


@contextmanager
def explained_full_memory(folder: RunFolder) -> Iterator[None]:
    """Turn an exception that means a full memory, of the GPU or the CPU, into a UserError that says what needs less."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, ValueError, OSError) as error:
        if not says_memory_is_full(error):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        memory = "the GPU's memory is full" if on_gpu else f"the memory is full ({first_line(error)[:200]})"
        raise UserError(
            f"{memory}; repeat the command with --run {folder.path.name} --resume and a lower "
            "learning.token_budget or rollout.max_rows, or model.gradient_checkpointing=true; or start anew with "
            "model.lora={rank: 16}, or with model.weights=bfloat16 and optimizer.eight_bit=true"
        ) from None


@contextmanager
def explained_full_disk(folder: RunFolder) -> Iterator[None]:
    """Add to a UserError that means a full disk how the run continues."""
    try:
        yield
    except UserError as error:
        if not says_disk_is_full(error):
            raise
        raise UserError(f"{error}; once there is room, --run {folder.path.name} --resume continues the run") from error
