"""Full memory, full disks and impossible sizes give one sentence that says how to continue."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Outcome, assert_error, sspo

from sspo_cli.errors import says_memory_is_full
from sspo_cli.policy.model import Policy
from sspo_cli.tracking import files, jsonl

HUGE = 10**12
QUICK = {
    "steps": 2,
    "model__tiny__hidden_size": 32,
    "model__tiny__heads": 1,
    "model__tiny__layers": 1,
    "rollout__prompts": 2,
    "rollout__group_size": 2,
    "rollout__max_new_tokens": 4,
    "learning__mu": 1,
    "cold_start__steps": 0,
    "tasks": "[{name: arithmetic, limit: 50}]",
    "evaluation__benchmarks": "[]",
    "checkpoint__every": 1,
}


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **options: sspo(
        "train", "--runs-dir", ".", "--run", "full", *arguments, **{**QUICK, **options}
    )


@pytest.mark.parametrize(
    "fail",
    [
        lambda: bytearray(1 << 60),
        lambda: torch.empty(1 << 58),
        lambda: torch.empty(1 << 40, 1 << 40),
        lambda: np.empty(1 << 60),
        lambda: np.empty((1 << 40, 1 << 40)),
        lambda: [0] * (1 << 62),
        lambda: [0] * (1 << 70),
        lambda: (
            os.posix_fallocate(os.memfd_create("x"), 0, 0)
            if False
            else (_ for _ in ()).throw(OSError(errno.ENOMEM, ""))
        ),
    ],
    ids=["Python", "torch", "torch's sizes", "numpy", "numpy's sizes", "list", "an integer that is no size", "fork"],
)
def test_every_library_s_way_to_say_that_the_memory_is_full(train, tmp_path, monkeypatch, fail) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        fail()
    assert says_memory_is_full(raised.value), repr(raised.value)
    # A run that this check refuses leaves no folder.
    monkeypatch.setattr("sspo_cli.session.check_model", lambda *_, **__: None)
    monkeypatch.setattr(Policy, "logprobs", lambda *_: fail())
    assert_error(train(), "out of memory")
    status = json.loads((tmp_path / "full" / "status.json").read_text())
    assert (status["state"], "--resume --run full" in status["reason"]) == ("failed", True)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), OSError(errno.ENOENT, "x")]
)
def test_other_errors_say_no_such_thing(error: Exception) -> None:
    assert not says_memory_is_full(error)


@pytest.mark.parametrize(
    "option",
    [
        "rollout.prompts",
        "rollout.group_size",
        "rollout.max_new_tokens",
        "learning.epochs",
        "cold_start.batch_size",
        "model.tiny.hidden_size",
        "model.tiny.layers",
        "evaluation.max_new_tokens",
    ],
)
def test_sizes_beyond_every_machine_are_refused_by_the_options(train, tmp_path, option: str) -> None:
    assert_error(train(**{option.replace(".", "__"): 2 * HUGE}), option)
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("rollout", {"rollout__prompts": 10**6, "rollout__group_size": 10**5}),
        ("learning", {"rollout__prompts": 10**6, "rollout__group_size": 32, "learning__epochs": 1000}),
        ("model.tiny", {"model__tiny__hidden_size": 2**16, "model__tiny__layers": 1000}),
    ],
)
def test_sizes_that_are_allowed_but_do_not_fit_are_refused_before_they_are_tried(train, section, options) -> None:
    done = train(**options)
    assert_error(done, "GiB of memory are needed, but this machine has")
    assert section in done.stderr


def test_a_full_disk_says_how_to_continue(train, tmp_path, monkeypatch) -> None:
    """Fill the disk at a checkpoint, and at the metrics when not even the status can be written."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patches:
        patches.setattr(torch, "save", full)
        assert_error(
            train(), "No space left on device; once there is room, `sspo train --resume --run full` continues the run"
        )
    with monkeypatch.context() as patches:

        def append(path: Path, row: object) -> None:
            with files.explain_os_errors("write", path):
                full()

        patches.setattr(jsonl, "append_jsonl", append)
        patches.setattr(os, "replace", full)
        assert_error(
            train("--resume"), "No space left on device; once there is room, `sspo train --resume --run full` continues"
        )
    done = train("--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "full" / "status.json").read_text())["state"] == "finished"
