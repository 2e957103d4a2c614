"""Checkpoints: complete or absent, never half.

A checkpoint is written beside its place and renamed into it; its manifest, written last, holds every file's checksum, so
that a damaged one is recognised and the one before it serves.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError

from sspo_cli.errors import UserError
from sspo_cli.policy.model import Policy

MANIFEST = "manifest.json"
STATE = "trainer.pt"


def save_checkpoint(folder: Path, policy: Policy, state: dict[str, Any]) -> None:
    """Writes the model (Hugging Face format) and `state` (tensors and plain values) to `folder`, atomically.

    Raises UserError where the disk is full or not writable; nothing is left behind then.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        for left in folder.parent.glob(".step-*.partial"):  # by a process that was killed in the middle of it
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        policy.save(partial)
        torch.save(state, partial / STATE)
        (partial / MANIFEST).write_text(json.dumps(_checksums(partial), indent=1))
        for path in (*partial.iterdir(), partial):
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
        _flush(folder.parent)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # of Python, torch, transformers, safetensors
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"the checkpoint {folder} cannot be written: {str(error).splitlines()[0]}") from None


def load_state(folder: Path) -> dict[str, Any]:
    """The `state` that `save_checkpoint` was given; the model is opened by `load_policy(..., folder=folder)`."""
    return torch.load(folder / STATE, map_location="cpu", weights_only=True)


def is_whole(folder: Path) -> bool:
    """Whether every file is there with the checksum of the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return manifest == _checksums(folder)
    except (OSError, ValueError):
        return False


def checkpoint_folders(parent: Path) -> list[Path]:
    """`step-N` folders, oldest first."""
    return sorted(parent.glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")))


def latest_whole(parent: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that is whole, and the damaged ones that are newer."""
    damaged: list[Path] = []
    for folder in reversed(checkpoint_folders(parent)):
        if is_whole(folder):
            return folder, damaged
        damaged.append(folder)
    return None, damaged


def discard_damaged(parent: Path) -> tuple[Path | None, list[Path]]:
    """The same, and the damaged ones are deleted: they would count among those to keep."""
    whole, damaged = latest_whole(parent)
    for folder in damaged:
        shutil.rmtree(folder)
    return whole, damaged


def keep_last(parent: Path, keep: int) -> None:
    for folder in checkpoint_folders(parent)[:-keep]:
        shutil.rmtree(folder, ignore_errors=True)


def _checksums(folder: Path) -> dict[str, str]:
    return {path.name: _checksum(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Onto the disk, so that the rename is never there before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
