"""Checkpoints, which are complete or absent.

A checkpoint is written to a temporary folder and renamed. Its manifest, which is written last, has the checksum of every file. A
damaged checkpoint is therefore recognized, and the previous checkpoint is used.
"""

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import xxhash
from safetensors import SafetensorError

from sspo_cli import ranks
from sspo_cli.errors import UserError, border, first_line, quantity, says_memory_is_full
from sspo_cli.policy.model import Policy
from sspo_cli.policy.sharded_files import OPTIMIZER_INDEX, load_optimizer_parts, save_optimizer, shard_optimizer
from sspo_cli.policy.sharding import local

MANIFEST = "manifest.json"
STATE = "trainer.pt"
VERIFIED = "SSPO_VERIFIED"  # environment variable: the stamp of the checkpoint that was verified last
NAME = re.compile(r"step-\d+")


def save_checkpoint(
    folder: Path, policy: Policy, state: dict[str, Any], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Write the model (Hugging Face format), `state` (tensors and plain values) and the optimizer's state atomically.

    An existing checkpoint in `folder` is deleted once the new one is complete. With several ranks, each writes its part of the
    optimizer's state, and the first writes everything else.

    Raises UserError if a weight is not finite, or if the disk is full or not writable. No partial checkpoint remains then.
    """
    if ranks.anywhere(not all(torch.isfinite(local(parameter)).all() for parameter in policy.parameters)):
        raise UserError(f"the weights are not finite, so {folder} is not written; {describe_last_good(folder.parent)}")
    partial = folder.with_name(f".{folder.name}.partial")
    if optimizer is not None:
        state = {**state, "ranks": ranks.size()}
        if ranks.size() == 1:
            state["optimizer"] = optimizer.state_dict()
    try:
        ranks.on_first(lambda: _begin(folder, partial))
        if ranks.size() == 1:
            with _explained(folder):
                policy.save(partial)
            parts = {}
        else:
            policy.save(partial)
            parts = _save_parts(policy, optimizer, partial) if optimizer is not None else {}
        ranks.on_first(lambda: _finish(folder, partial, state, parts))
    except UserError:
        if ranks.is_first():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _begin(folder: Path, partial: Path) -> None:
    with _explained(folder):
        # Remove partial checkpoints of processes that were killed while writing.
        for left in folder.parent.glob(".step-*.partial"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)


def _save_parts(policy: Policy, optimizer: torch.optim.Optimizer, partial: Path) -> dict[str, str]:
    """Write each rank's part of the optimizer state, and return the checksums of all parts."""
    written = save_optimizer(policy.model, optimizer, partial)

    def checksums() -> list[tuple[str, str]]:
        with _explained(partial):
            for path in written:
                _flush(path)
            return [(path.name, _checksum(path)) for path in written]

    return dict(ranks.gather(checksums))


def _finish(folder: Path, partial: Path, state: dict[str, Any], parts: Mapping[str, str]) -> None:
    """Write the state and the manifest, and move the checkpoint to `folder`. `parts` has the checksums of the ranks' parts."""
    with _explained(folder):
        with (partial / STATE).open("wb") as file:
            writer = _Writer(file)
            try:
                torch.save(state, cast(BinaryIO, writer))
            except RuntimeError as error:
                raise writer.error or error from None
        (partial / MANIFEST).write_text(json.dumps(_checksums(partial, parts), indent=1))
        follow_umask(partial)
        for path in (*partial.iterdir(), partial):
            if path.name not in parts:
                _flush(path)
        _put_in_place(partial, folder)
        _flush(folder.parent)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # of Python, torch, transformers, safetensors
        raise UserError(f"the checkpoint {folder} cannot be written: {first_line(error)}") from error


class _Writer:
    """A file that remembers why a write failed, which torch's message does not contain."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        ranks.still_working()
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def follow_umask(folder: Path) -> None:
    """Give the files in a folder the mode of new files, because safetensors makes files readable only by their owner."""
    probe = folder / ".mode"  # the umask itself can only be read by changing it for all threads
    probe.touch(mode=0o666)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.iterdir():
        path.chmod(mode)


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename a complete checkpoint to its final name.

    An existing checkpoint is moved away first. If the process is killed between the two steps, `latest_whole` restores it.
    """
    replaced = _replaced(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        os.rename(folder, replaced)
    try:
        os.rename(partial, folder)
    except OSError:
        if replaced.exists():
            os.rename(replaced, folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _recover(parent: Path) -> None:
    """Restore a checkpoint that a process moved away before it was killed."""
    for replaced in parent.glob(".step-*.replaced"):
        folder = replaced.with_name(replaced.name.removeprefix(".").removesuffix(".replaced"))
        if not folder.exists():
            with suppress(OSError):  # this process may have no permission to write here
                os.rename(replaced, folder)


def describe_last_good(parent: Path) -> str:
    """Return the end of a sentence that names the checkpoint to resume from."""
    whole, _ = latest_whole(parent)
    return f"the last good checkpoint is {whole}" if whole else "there is no checkpoint before it"


def load_state(folder: Path) -> dict[str, Any]:
    """Read the `state` that was passed to `save_checkpoint`; `load_policy(..., folder=folder)` loads the model."""
    with usable_state(folder):
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"{STATE} holds a {type(state).__name__}")
    return state


def holds_optimizer(name: str) -> bool:
    """Report whether a checkpoint's file of this name holds the state of the optimizer or the run, and not the model."""
    return name in (STATE, OPTIMIZER_INDEX) or name.endswith(".distcp")


def load_optimizer(folder: Path, state: dict[str, Any], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state of a checkpoint, written with any number of ranks.

    state  the checkpoint's state from `load_state`

    Raises UserError if the state cannot be used. An 8-bit state, for example, needs the number of ranks that wrote it.
    """
    written_by, eight_bit = state.get("ranks", 1), type(optimizer) is not torch.optim.AdamW
    if eight_bit and written_by != ranks.size():
        raise UserError(
            f"the 8-bit optimizer state in {folder} was written by {quantity(written_by, 'rank')}, so "
            f"{quantity(ranks.size(), 'rank')} cannot load it; resume with --nproc {written_by}"
        )
    with usable_state(folder):
        if (folder / OPTIMIZER_INDEX).exists():
            load_optimizer_parts(policy.model, optimizer, folder)
        elif "optimizer" in state:  # saved by a single process; missing if no step had been taken
            if ranks.size() == 1:
                optimizer.load_state_dict(state["optimizer"])
            else:
                shard_optimizer(optimizer, state["optimizer"])


@contextmanager
def usable_state(folder: Path) -> Iterator[None]:
    """Turn exceptions in the block into a UserError about a checkpoint's state that cannot be loaded or does not fit the run.

    Exceptions without a cause in the checkpoint are not converted: out of memory, or the loss of another rank.
    """
    try:
        yield
    except BaseException as error:
        if says_memory_is_full(error) or ranks.says_lost(error):
            raise
        with border(f"the state of checkpoint {folder} cannot be used; delete this folder to use an earlier one"):
            raise


def is_whole(folder: Path) -> bool:
    """Report whether every file of the manifest exists with its checksum. Raises UserError if a file cannot be read.

    The checkpoint that was verified last, by this process or by the one that started it, is not hashed again unless one of its
    files has changed: a fork on several ranks is verified by the supervisor and by each rank.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest, dict) or STATE not in manifest:
            return False
        stamp = _stamp(folder, [MANIFEST, *manifest])
        if os.environ.get(VERIFIED) == stamp:
            return True
        if not all(_checksum(folder / name) == digest for name, digest in manifest.items()):
            return False
        os.environ[VERIFIED] = stamp
        return True
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return False
    except OSError as error:  # the file may be intact, so this checkpoint must not be skipped
        raise UserError(f"checkpoint {folder} cannot be read: {error}") from None


def _stamp(folder: Path, names: Sequence[str]) -> str:
    """Hash what changes with each change of one of the files: their inodes, sizes and times."""
    states = [(name, (folder / name).stat()) for name in names]
    values = [(name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states]
    return xxhash.xxh3_128_hexdigest(json.dumps(values).encode())


def checkpoint_folders(parent: Path) -> list[Path]:
    """List the `step-N` folders, oldest first."""
    folders = [folder for folder in parent.glob("step-*") if NAME.fullmatch(folder.name)]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step-")))


def latest_whole(parent: Path) -> tuple[Path | None, list[Path]]:
    """Find the newest complete checkpoint, and the newer damaged ones."""
    _recover(parent)
    damaged: list[Path] = []
    for folder in reversed(checkpoint_folders(parent)):
        if is_whole(folder):
            return folder, damaged
        damaged.append(folder)
    return None, damaged


def set_damaged_aside(parent: Path) -> tuple[Path | None, list[Path]]:
    """Find the newest complete checkpoint, and rename newer damaged checkpoints, so that `keep_last` ignores them.

    Returns the checkpoint, or None if there is none, and the new names of the damaged ones.
    """
    whole, damaged = latest_whole(parent)
    aside = [folder.with_name(f"damaged-{folder.name}") for folder in damaged]
    for folder, place in zip(damaged, aside, strict=True):
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    return whole, aside


def keep_last(parent: Path, keep: int, best: int | None = None) -> None:
    """Delete all checkpoints except the newest `keep` and the one of step `best`."""
    for folder in checkpoint_folders(parent)[:-keep]:
        if folder.name != f"step-{best}":
            shutil.rmtree(folder, ignore_errors=True)


def _checksums(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST)
    return {name: known[name] if name in known else _checksum(folder / name) for name in names}


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            ranks.still_working()  # large models take minutes
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Flush `path` to the disk, so that a rename is never stored before the content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
