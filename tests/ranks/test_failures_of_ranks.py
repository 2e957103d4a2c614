"""A rank that fails, is killed or stops: all end, and one sentence says which one and why."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import assert_told, sspo

from sspo_cli import liveness
from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.ranks import PATIENCE, check_start
from sspo_cli.supervisor import Ends, run_ranks

FAILING = Path(__file__).with_name("failing.py")
SENTENCES = {
    "refused": "rank 1: the GPU's memory is full; ask for less",
    "killed": "rank 1: it was ended by SIGKILL, as the system does when the memory is full; --resume continues",
    "stopped": "rank 1: it was stopped (SIGSTOP) and did nothing for 3 seconds; --resume continues",
    "stuck": "rank 1: it hangs in a call and did nothing for 3 seconds; --resume continues",
    "late": (
        f"rank 1 did not answer for 4 seconds ({PATIENCE}): it hangs, or its work takes longer; --resume continues"
    ),
    "bug": "rank 1: it failed with KeyError: 'a mistake'; see its output above",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_one_sentence_says_which_rank_and_why(forked_ranks, monkeypatch, tmp_path, capfd, kind):
    """A rank that does not run is found long before the patience for one that works."""
    monkeypatch.setattr(liveness, "SILENCE", 3.0)
    if kind == "late":
        monkeypatch.setenv(PATIENCE, "4")
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        run_ranks([sys.executable, str(FAILING), kind, str(tmp_path)], 2)
    assert str(error.value) == SENTENCES[kind]
    assert time.monotonic() - began < 120
    printed = capfd.readouterr().err
    assert ("KeyError" in printed) == (kind == "bug")
    if kind == "refused":
        first = ["UserError: rank 1: there is no such file; name another", "UserError: no room"]
        shared = [line.replace("UserError", "SharedError") for line in first]
        rest = ["0", "1", "2", "3", "4", "within", "True", "3.0"]
        assert (tmp_path / "rank-0").read_text().splitlines() == [*first, *rest]
        assert (tmp_path / "rank-1").read_text().splitlines() == [*shared, *rest]


def test_ranks_that_a_signal_ends_unsaved_are_not_said_to_be_saved(forked_ranks, tmp_path):
    ends = Ends(killed="", stopped="stopped; finished work is kept")
    with pytest.raises(Interrupted, match=r"^stopped; finished work is kept$"):
        run_ranks([sys.executable, str(FAILING), "signal", str(tmp_path)], 2, ends)


SLEEPS = ("S", [50, 3, 100])
COMPUTES = [("R", [50 + turn, 3, 100]) for turn in range(10)]
WRITES = [("S", [50, 3, 100 + turn]) for turn in range(10)]


@pytest.mark.parametrize(
    ("activities", "beats", "hangs"),
    [
        ([SLEEPS] * 10, range(1, 11), None),  # it waits for another rank, or for a server
        ([SLEEPS] * 10, [1] * 10, "it hangs in a call"),
        ([("T", SLEEPS[1])] * 10, [1] * 10, "it was stopped (SIGSTOP)"),
        ([("T", SLEEPS[1])] * 10, [0] * 10, "it was stopped (SIGSTOP)"),
        (COMPUTES, [1] * 10, None),  # in a call that lets no other thread run
        (WRITES, [1] * 10, None),
        ([("D", SLEEPS[1])] * 10, [1] * 10, None),  # the disk does not answer
        ([("t", SLEEPS[1])] * 10, [1] * 10, None),  # a debugger
        ([SLEEPS] * 10, [0] * 10, None),  # it has not begun
        ([SLEEPS] * 10, [-5] * 10, None),  # it has left the others
        ([None] * 10, [1] * 10, None),
    ],
)
def test_a_process_hangs_if_it_neither_answers_nor_computes_nor_writes(monkeypatch, activities, beats, hangs):
    clock = iter(range(0, 1000, 5))  # slower than the watch expects
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(liveness, "SILENCE", 16.0)
    left = iter(activities)
    monkeypatch.setattr(liveness, "_activity", lambda process: next(left))
    watch = liveness.Watch({3: 77})
    found = [watch.hung({3: count}) for count in beats]
    expected = {3: f"{hangs} and did nothing for 16 seconds"} if hangs else {}
    assert found == [{}] * 8 + [expected] * 2  # each of 8 looks after the first counts for 2 seconds


def test_the_kernel_says_what_a_process_does():
    before = liveness._activity(os.getpid())
    assert before is not None
    sum(number * number for number in range(1_000_000))
    state, work = liveness._activity(os.getpid())
    assert state == "R"
    assert work[0] > before[1][0]
    assert liveness._activity(2**22 + 1) is None
    assert not liveness.has_ended(os.getpid())
    ended = os.fork()
    if not ended:
        os._exit(0)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    assert liveness.has_ended(ended)  # before it is waited for
    os.waitpid(ended, 0)
    assert liveness.has_ended(ended)


def test_a_wrong_patience_is_reported_once_before_a_rank_starts(monkeypatch, capfd):
    monkeypatch.setenv(PATIENCE, "long")
    assert_told(sspo("train", "--nproc", "2"), f"{PATIENCE} = long is not a number of seconds")
    assert not capfd.readouterr().err


def test_each_rank_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    check_start(2, "auto")
    check_start(4, "cpu")
    with pytest.raises(
        UserError, match="99 ranks are too many for the 2 cores that this process may use; start at most 4"
    ):
        check_start(99, "cpu")
    with pytest.raises(UserError, match="3 ranks need as many GPUs, and this machine has 2"):
        check_start(3, "cuda")
    with pytest.raises(UserError, match="device = cuda:1 is a single GPU"):
        check_start(2, "cuda:1")
