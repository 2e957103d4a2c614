"""A rank that fails, is killed or stops: all end, and one sentence says which one and why."""

import sys
import time
from pathlib import Path

import pytest
import torch
from commands import assert_told, sspo

from sspo_cli.errors import UserError
from sspo_cli.ranks import PATIENCE, check_start
from sspo_cli.supervisor import run_ranks

FAILING = Path(__file__).with_name("failing.py")
SENTENCES = {
    "refused": "rank 1: the GPU's memory is full; ask for less",
    "killed": ("rank 1: it was ended by SIGKILL, as the system does when the memory is full; --resume continues"),
    "stopped": (
        f"rank 1 did not answer for 4 seconds ({PATIENCE}): it was stopped, or its machine hangs; --resume continues"
    ),
    "bug": "rank 1: it failed with KeyError: 'a mistake'; see its output above",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_one_sentence_says_which_rank_and_why(monkeypatch, tmp_path, capfd, kind):
    monkeypatch.setenv(PATIENCE, "4")
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        run_ranks([sys.executable, str(FAILING), kind, str(tmp_path)], 2)
    assert str(error.value) == SENTENCES[kind]
    assert time.monotonic() - began < 120  # of which most goes to imports
    printed = capfd.readouterr().err
    assert ("KeyError" in printed) == (kind == "bug")
    if kind == "refused":
        first = ["UserError: rank 1: there is no such file; name another", "UserError: no room"]
        shared = [line.replace("UserError", "SharedError") for line in first]
        rest = ["0", "1", "2", "3", "4", "within", "True", "3.0"]
        assert (tmp_path / "rank-0").read_text().splitlines() == [*first, *rest]
        assert (tmp_path / "rank-1").read_text().splitlines() == [*shared, *rest]


def test_a_wrong_patience_is_reported_once_before_a_rank_starts(monkeypatch, capfd):
    monkeypatch.setenv(PATIENCE, "long")
    assert_told(sspo("train", "--nproc", "2"), f"{PATIENCE} = long is not a number of seconds")
    assert not capfd.readouterr().err


def test_each_rank_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_start(2, "auto")
    check_start(3, "cpu")
    with pytest.raises(UserError, match="3 ranks need as many GPUs, and this machine has 2"):
        check_start(3, "cuda")
    with pytest.raises(UserError, match="device = cuda:1 is a single GPU"):
        check_start(2, "cuda:1")
