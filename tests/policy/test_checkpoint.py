"""Checkpoints are complete or absent."""

import errno
import shutil

import pytest
import torch
from safetensors import SafetensorError

from sspo_cli.errors import UserError
from sspo_cli.policy import checkpoint
from sspo_cli.policy.checkpoint import is_whole, keep_last, latest_whole, load_state, save_checkpoint
from sspo_cli.policy.model import Policy

STATE = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "run": {"step": 3, "batch": None}}


def test_state_comes_back_as_it_was(policy, tmp_path):
    save_checkpoint(tmp_path / "step-3", policy, STATE)
    assert load_state(tmp_path / "step-3") == STATE
    assert is_whole(tmp_path / "step-3")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "no manifest"])
def test_damage_is_seen_and_the_one_before_serves(policy, tmp_path, damage):
    for step in (2, 10):  # in the order of numbers, not of names
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
