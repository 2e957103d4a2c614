"""Tests of checkpoints, which are complete or absent."""

import errno
import os
import shutil
import time

import pytest
import torch
from safetensors import SafetensorError

from sspo_cli.errors import UserError
from sspo_cli.policy import checkpoint
from sspo_cli.policy.checkpoint import (
    is_whole,
    keep_last,
    latest_whole,
    load_state,
    save_checkpoint,
    set_damaged_aside,
)
from sspo_cli.policy.model import Policy

STATE = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "run": {"step": 3, "batch": None}}


def test_state_comes_back_as_it_was(policy, tmp_path):
    save_checkpoint(tmp_path / "step-3", policy, STATE)
    assert load_state(tmp_path / "step-3") == STATE
    assert is_whole(tmp_path / "step-3")


def test_a_checkpoint_of_the_same_step_is_replaced_whole(policy, tmp_path):
    save_checkpoint(tmp_path / "step-3", policy, STATE)
    (tmp_path / "step-3" / "left.txt").write_text("of the old one")
    before = (tmp_path / "step-3" / "model.safetensors").read_bytes()
    with torch.no_grad():
        policy.parameters[0].add_(1.0)
    save_checkpoint(tmp_path / "step-3", policy, {"run": {"step": 3, "batch": "another"}})
    assert load_state(tmp_path / "step-3") == {"run": {"step": 3, "batch": "another"}}
    assert (tmp_path / "step-3" / "model.safetensors").read_bytes() != before
    assert is_whole(tmp_path / "step-3")
    assert not (tmp_path / "step-3" / "left.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_what_a_killed_process_left_half_written_goes_with_the_next_checkpoint(policy, tmp_path):
    for name in (".step-2.partial", ".step-4.partial"):  # step 2 is saved again below, step 4 is not
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert latest_whole(tmp_path) == (None, [])
    save_checkpoint(tmp_path / "step-2", policy, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]
    assert is_whole(tmp_path / "step-2")


@pytest.mark.parametrize("killed_before", [1, 2, 3], ids=["the first rename", "the second rename", "the deletion"])
def test_killed_while_it_is_replaced_a_whole_checkpoint_is_left(policy, tmp_path, monkeypatch, killed_before):
    save_checkpoint(tmp_path / "step-3", policy, STATE)
    calls = 0

    class Killed(BaseException):
        """A kill, after which nothing is cleaned up."""

    def stops(original):
        def call(path, *args, **kwargs):
            nonlocal calls
            calls += "step-3" in str(path) and os.path.exists(path)
            if calls == killed_before:
                raise Killed
            return original(path, *args, **kwargs)

        return call

    with monkeypatch.context() as patches:
        patches.setattr(checkpoint.os, "rename", stops(os.rename))
        patches.setattr(checkpoint.shutil, "rmtree", stops(shutil.rmtree))
        with pytest.raises(Killed):
            save_checkpoint(tmp_path / "step-3", policy, {"run": {"step": 3, "batch": "another"}})
    assert latest_whole(tmp_path) == (tmp_path / "step-3", [])
    assert load_state(tmp_path / "step-3")["run"]["batch"] == ("another" if killed_before == 3 else None)
    save_checkpoint(tmp_path / "step-3", policy, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(policy, tmp_path, bad):
    save_checkpoint(tmp_path / "step-1", policy, STATE)
    with torch.no_grad():
        policy.parameters[-1].view(-1)[-1] = bad
    with pytest.raises(
        UserError, match=r"not finite, so .*step-2 is not written; the last good checkpoint is .*step-1"
    ):
        save_checkpoint(tmp_path / "step-2", policy, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_follows_the_umask(policy, tmp_path, umask):
    before = os.umask(umask)
    try:
        save_checkpoint(tmp_path / "step-1", policy, STATE)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "step-1").iterdir()}
    assert set(modes.values()) == {0o666 & ~umask}, modes


@pytest.mark.parametrize("room", [0, 100, 20_000], ids="{} bytes".format)
def test_a_disk_that_is_full_for_torch_is_said_to_be_full(policy, tmp_path, monkeypatch, room):
    """A full disk gives the same message anywhere in the file; torch's own message names neither file nor reason."""
    state = {"weights": torch.arange(10_000.0)}
    write, written = checkpoint._Writer.write, 0

    class Full:
        def write(self, content):
            nonlocal written
            written += len(content)
            if written > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(content)

        def flush(self):
            pass

    def full(self, content):
        self._file = Full()
        return write(self, content)

    monkeypatch.setattr(checkpoint._Writer, "write", full)
    with pytest.raises(UserError, match=r"step-2 cannot be written: .*No space left on device$") as raised:
        save_checkpoint(tmp_path / "step-2", policy, state)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no manifest"])
def test_damage_is_seen_and_the_one_before_serves(policy, tmp_path, damage):
    for step in (2, 10):  # the latest checkpoint has the highest number, not the last name
        save_checkpoint(tmp_path / f"step-{step}", policy, STATE)
    weights = tmp_path / "step-10" / "model.safetensors"
    content = weights.read_bytes()
    match damage:
        case "truncate":
            weights.write_bytes(content[:-1])
        case "flip":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "remove":
            weights.unlink()
        case "no manifest":
            (tmp_path / "step-10" / "manifest.json").unlink()
    assert latest_whole(tmp_path) == (tmp_path / "step-2", [tmp_path / "step-10"])


def test_damage_to_any_file_is_seen(policy, tmp_path):
    folder = tmp_path / "step-1"
    save_checkpoint(folder, policy, STATE)
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert {"model.safetensors", "trainer.pt", "config.json", "tokenizer.json"} <= names
    for path in map(folder.joinpath, names):
        content = path.read_bytes()
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert not is_whole(folder), path.name
        path.write_bytes(content)
    assert is_whole(folder)


def test_a_checkpoint_is_hashed_once_by_a_process_and_those_that_it_starts(policy, tmp_path, monkeypatch):
    """Child processes get the stamp of a verified checkpoint in their environment.

    A changed file is noticed even if its size and modification time stay the same.
    """
    folder, hashed = tmp_path / "step-1", []
    save_checkpoint(folder, policy, STATE)
    checksum = checkpoint._checksum
    monkeypatch.setattr(checkpoint, "_checksum", lambda path: (hashed.append(path.name), checksum(path))[1])
    monkeypatch.delenv(checkpoint.VERIFIED, raising=False)
    assert is_whole(folder)
    count = len(hashed)
    assert is_whole(folder)
    assert len(hashed) == count == len(list(folder.iterdir())) - 1
    time.sleep(0.02)  # the file system's clock may have a resolution of a hundredth of a second
    path = folder / "model.safetensors"
    content, before = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not is_whole(folder)


def test_every_file_is_on_the_disk_before_the_folder_has_its_name(policy, tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("rename"), rename(a, b)))
    save_checkpoint(tmp_path / "step-1", policy, STATE)
    at = calls.index("rename")
    folder = tmp_path / "step-1"
    assert {path.stat().st_ino for path in (folder, *folder.iterdir())} <= set(calls[:at])
    assert tmp_path.stat().st_ino in calls[at:]  # the new name is flushed after the rename


def test_a_state_that_holds_code_is_not_run(policy, tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").touch, ())

    save_checkpoint(tmp_path / "step-1", policy, STATE)
    torch.save({"run": Code()}, tmp_path / "step-1" / "trainer.pt")
    with pytest.raises(UserError, match=r"step-1 cannot be used; .* it is damaged or holds code"):
        load_state(tmp_path / "step-1")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (torch, "save", OSError(errno.ENOSPC, "No space left on device")),
        (torch, "save", RuntimeError("[enforce fail at inline_container.cc] unexpected pos")),
        (Policy, "save", SafetensorError("I/O error: No space left on device (os error 28)")),
        (checkpoint.os, "rename", OSError(errno.EIO, "Input/output error")),
    ],
    ids=["full in torch", "full in torch's writer", "full in safetensors", "at the rename"],
)
def test_a_disk_that_refuses_leaves_nothing_behind(policy, tmp_path, monkeypatch, owner, name, error):
    def refuse(*args, **kwargs):
        raise error

    save_checkpoint(tmp_path / "step-1", policy, STATE)
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(UserError, match=r"the checkpoint .*step-2 cannot be written: .+"):
        save_checkpoint(tmp_path / "step-2", policy, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert is_whole(tmp_path / "step-1")


def test_the_last_ones_are_kept(policy, tmp_path):
    save_checkpoint(tmp_path / "step-9", policy, STATE)
    for step in (10, 100, 20):
        shutil.copytree(tmp_path / "step-9", tmp_path / f"step-{step}")
    keep_last(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100", "step-20"]


def test_the_best_checkpoint_stays_however_old_it_is(tmp_path):
    for step in (3, 9, 20, 100):
        (tmp_path / f"step-{step}").mkdir()
    keep_last(tmp_path, 2, best=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100", "step-20", "step-3"]
    keep_last(tmp_path, 2, best=20)  # the best is one of the last two, so no third checkpoint is kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100", "step-20"]


def test_what_a_user_puts_next_to_or_into_checkpoints_harms_none(policy, tmp_path):
    save_checkpoint(tmp_path / "step-3", policy, STATE)
    (tmp_path / "step-3" / "notes.txt").write_text("good one")
    shutil.copytree(tmp_path / "step-3", tmp_path / "step-3-copy")
    assert latest_whole(tmp_path) == (tmp_path / "step-3", [])
    keep_last(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-3-copy"]


def test_damaged_ones_are_set_aside_and_do_not_count_among_those_to_keep(policy, tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path / f"step-{step}", policy, STATE)
    (tmp_path / "step-2" / "model.safetensors").unlink()
    assert set_damaged_aside(tmp_path) == (tmp_path / "step-1", [tmp_path / "damaged-step-2"])
    keep_last(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-2", "step-1"]


def test_a_step_that_is_damaged_again_takes_the_place_of_the_one_set_aside(policy, tmp_path):
    save_checkpoint(tmp_path / "step-1", policy, STATE)
    for number in (1, 2):
        save_checkpoint(tmp_path / "step-2", policy, STATE)
        (tmp_path / "step-2" / "manifest.json").write_text(f'{{"absent {number}": ""}}')
        assert set_damaged_aside(tmp_path) == (tmp_path / "step-1", [tmp_path / "damaged-step-2"])
    assert "absent 2" in (tmp_path / "damaged-step-2" / "manifest.json").read_text()


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(policy, tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "step-1", policy, STATE)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "_checksum", refuse)
    with pytest.raises(UserError, match="cannot be read"):
        set_damaged_aside(tmp_path)
    assert (tmp_path / "step-1").is_dir()
