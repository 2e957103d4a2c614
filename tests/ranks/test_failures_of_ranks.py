"""A rank that fails, is killed or stops: all end, and one sentence says which one and why."""

import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import gradients
import pytest
import torch
import torch.distributed as dist
from commands import assert_error, sspo
from forked import Forked
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from sspo_cli import ranks, supervisor
from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.launchers import SUPERVISED
from sspo_cli.policy import sharded_loading
from sspo_cli.policy.checkpoint import usable_state
from sspo_cli.policy.head import measure_transform
from sspo_cli.policy.sharding import local
from sspo_cli.ranks import check_start, heartbeat, joining, liveness
from sspo_cli.ranks.joining import PATIENCE
from sspo_cli.ranks.keys import ALIVE, FAILED
from sspo_cli.ranks.place import here
from sspo_cli.run.failures import has_finished_since
from sspo_cli.supervisor import OF_TRAINING, Ends, FailedRanks, run_ranks
from sspo_cli.tracking.run_folder import RunFolder

FAILING = Path(__file__).with_name("failing.py")
SENTENCES = {
    "refused": "rank 1: the GPU's memory is full; ask for less",
    "killed": "rank 1: it was ended by SIGKILL, as the system does when the memory is full; --resume continues",
    "stopped": "rank 1: it was stopped (SIGSTOP) and did nothing for 3 seconds; --resume continues",
    "stuck": "rank 1: it hangs in a call and did nothing for 3 seconds; --resume continues",
    "late": (
        f"rank 1 did not answer for 4 seconds ({PATIENCE}): it hangs, or its work takes longer; --resume continues"
    ),
    "alone": (
        f"rank 0 did not answer for 4 seconds ({PATIENCE}): it hangs, or its work takes longer; --resume continues"
    ),
    "bug": "rank 1: it failed with KeyError: 'a mistake'; see its output above; --resume continues",
    "bug of all": f"rank 0: it failed with KeyError: 'a mistake'; see its output above; {OF_TRAINING.killed}",
    "early": "rank 1: there is no such config",
    "other options": "rank 1 has other options than rank 0 (seed: 1 instead of 0); give all the same",
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_one_sentence_says_which_rank_and_why(forked_ranks, monkeypatch, tmp_path, capfd, kind):
    """A rank that does not run is found long before the patience for one that works."""
    monkeypatch.setattr(liveness, "SILENCE", 3.0)
    if kind in ("late", "alone"):
        monkeypatch.setenv(PATIENCE, "4")
        monkeypatch.setattr(supervisor, "ASK_AFTER", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        run_ranks([sys.executable, str(FAILING), kind, str(tmp_path)], 2)
    assert str(error.value) == SENTENCES[kind]
    assert time.monotonic() - began < 120
    printed = capfd.readouterr().err
    assert printed.count("Traceback") == kind.startswith("bug")
    if kind == "refused":
        first = ["UserError: rank 1: there is no such file; name another", "UserError: no room"]
        shared = [line.replace("UserError", "SharedError") for line in first]
        rest = ["0", "1", "2", "3", "4", "within", "True", "3.0"]
        assert (tmp_path / "rank-0").read_text().splitlines() == [*first, *rest]
        assert (tmp_path / "rank-1").read_text().splitlines() == [*shared, *rest]


# What the ranks print themselves, without a supervisor, like those of torchrun.
PRINTED = {
    **{kind: SENTENCES[kind] for kind in ("refused", "bug", "early", "other options")},
    "killed": "rank 1 has ended without a report: it was killed, or it crashed; see its output above; --resume continues",
    "other program": "rank 1 has another program than rank 0 (sspo: 0.0.1 instead of 0.1.0); install",
    "bug of all": None,
}


@pytest.mark.parametrize("kind", PRINTED)
def test_ranks_of_torchrun_print_the_sentence_once(tmp_path, kind):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(FAILING), kind, str(tmp_path)]
    with (tmp_path / "output").open("w") as output:
        started = [
            Forked(command, env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}, stdout=output)
            for rank in ("0", "1")
        ]
        codes = [process.wait() for process in started]
    assert codes == [1, -signal.SIGKILL if kind == "killed" else 1]
    printed = (tmp_path / "output").read_text()
    said = [line for line in printed.splitlines() if line.startswith("sspo: ")]
    assert [line.startswith(f"sspo: {PRINTED[kind]}") for line in said] == [True] * (PRINTED[kind] is not None), said
    assert printed.count("Traceback") == kind.startswith("bug")


def test_ranks_that_a_signal_ends_unsaved_are_not_said_to_be_saved(forked_ranks, tmp_path):
    ends = Ends(killed="", stopped="stopped; finished work is kept")
    with pytest.raises(Interrupted, match=r"^stopped; finished work is kept$"):
        run_ranks([sys.executable, str(FAILING), "signal", str(tmp_path)], 2, ends)


class Store(dict):
    """A dictionary with the methods of torch's store that reports use."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def add(self, key: str, count: int) -> int:
        self[key] = self.setdefault(key, 0) + count
        return self[key]


class Process:
    """A rank that ends with an exit code at once, or by the SIGTERM that it is sent."""

    pid = 2**22 + 1  # there is none

    def __init__(self, code: int | None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.code = -15


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([None, 1], "rank 1: there is no such file"),  # the first rank has no handler, as in an evaluation
        ([1, None, None], "there is no such file"),
        ([-11, None], "rank 0: it was ended by SIGSEGV; --resume continues"),
        ([None, 130], Interrupted),  # it waits to join the one that a Ctrl-C has ended
    ],
)
def test_a_rank_that_is_asked_to_end_after_the_failure_of_another_one_is_not_blamed(monkeypatch, codes, said):
    monkeypatch.setattr(supervisor, "ASK_AFTER", 0.15)
    store, processes = Store(), [Process(code) for code in codes]
    if 1 in codes:
        store.set(FAILED.format(codes.index(1)), "there is no such file")
    ended = supervisor._wait(processes, store)
    assert ended == {rank for rank, code in enumerate(codes) if code is None}
    ends, after = Ends(killed="--resume continues", stopped="stopped"), [process.code for process in processes]
    with pytest.raises(Interrupted if said is Interrupted else UserError) as error:
        supervisor._explain(after, ended, [signal.SIGINT], store, ends)
    assert str(error.value) == ("stopped" if said is Interrupted else said)


def test_a_rank_that_is_killed_because_it_does_not_end_does_not_hide_the_first_failure():
    store = Store()
    for rank, sentence in enumerate(["no room", "no file"]):
        store.set(FAILED.format(rank), sentence)
    with pytest.raises(UserError, match=r"^no room$"):
        supervisor._explain([1, -9], {1}, [], store, Ends(killed="--resume continues", stopped=""))


def test_a_process_that_gets_the_number_of_an_ended_rank_is_not_watched(monkeypatch):
    """An exit code that was taken frees the number."""
    looked_at = []
    monkeypatch.setattr(liveness, "_activity", looked_at.append)
    monkeypatch.setattr(supervisor, "WATCH", -1.0)
    monkeypatch.setattr(supervisor, "ASK_AFTER", 0.15)
    processes = [Process(None), Process(1)]
    processes[0].pid, processes[1].pid = 11, 12
    supervisor._wait(processes, Store())
    assert set(looked_at) == {11}


def test_a_rank_counts_on_after_its_store_did_not_answer(monkeypatch):
    """Otherwise a rank that merely waits would be taken for one that hangs."""

    class Broken(Store):
        def add(self, key: str, count: int) -> int:
            raise dist.DistNetworkError("Broken pipe")

        def clone(self) -> Store:
            return store

    monkeypatch.setattr(heartbeat, "HEARTBEAT", 0.01)
    monkeypatch.setenv(SUPERVISED, "1")
    store, ended = Store(), threading.Event()
    heart = threading.Thread(target=heartbeat._beat, args=(Broken(), 1, 2, ended))
    heart.start()
    deadline = time.monotonic() + 20
    while store.get(ALIVE.format(1), 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    ended.set()
    heart.join()
    assert store.get(ALIVE.format(1)) >= 3


def test_a_rank_that_has_done_its_work_does_not_fail_with_the_first_one(monkeypatch):
    """The first one may fail to close its log, or take longer for that than the patience."""

    def lose() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4321")

    store = Store()
    for name, value in {"rank": 1, "size": 2, "store": store}.items():
        monkeypatch.setattr(here, name, value)
    monkeypatch.setattr(joining.dist, "barrier", lose)
    monkeypatch.setattr(joining.dist, "destroy_process_group", lambda: None)
    ranks.stop()
    assert store.get(ALIVE.format(1)) < 0
    assert ranks.size() == 1


@pytest.mark.parametrize(
    ("state", "first_code", "fails"), [("finished", 0, False), ("finished", 1, True), ("running", 0, True)]
)
def test_a_rank_that_crashes_after_the_run_had_finished_fails_nothing(
    monkeypatch, tmp_path, capsys, state, first_code, fails
):
    def run(command: list[str], count: int, ends: Ends) -> None:
        with RunFolder.create(tmp_path / "a", RunOptions(), []) as folder:
            folder.write_status(state, 160, 160)
        raise FailedRanks(f"rank 1: it was ended by SIGSEGV; {ends.killed}", tmp_path / "a", first_code)

    monkeypatch.setattr(supervisor, "run_ranks", run)
    result = sspo("train", "--nproc", "2", "-s", "device=cpu", "--runs-dir", str(tmp_path))
    if fails:
        assert_error(result, "rank 1: it was ended by SIGSEGV; --resume continues the run")
    else:
        assert result.returncode == 0
        assert "note: rank 1: it was ended by SIGSEGV; the run had already finished" in result.stderr


def test_an_extension_that_fails_is_not_taken_for_a_finished_run(tmp_path):
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as folder:
        folder.write_status("finished", 160, 160)
    now = datetime.now(UTC)
    assert has_finished_since(tmp_path / "a", now - timedelta(seconds=60))
    assert not has_finished_since(tmp_path / "a", now + timedelta(seconds=60))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4321"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_neither_a_lost_rank_nor_a_full_memory_is_taken_for_a_damaged_checkpoint_or_a_wrong_model(
    monkeypatch, tmp_path, error
):
    def fail(*_: object, **__: object) -> None:
        raise error

    policy = gradients.make_policy("dense")
    monkeypatch.setattr(policy.model, "forward", fail)
    with ranks.assuming_size(2):
        with pytest.raises(type(error)), usable_state(tmp_path):
            fail()
        with pytest.raises(UserError, match="delete this folder"), usable_state(tmp_path):
            raise RuntimeError("PytorchStreamReader failed reading zip archive")
        with pytest.raises(type(error)):
            measure_transform(policy.model)


def test_experts_stay_whole_if_a_rank_would_get_none():
    """A rank's rows are those of torch.chunk: of 6 experts the last of 4 ranks gets none, of 7 one."""
    layer = nn.Module()
    for count in (3, 6, 7, 8, 9):
        layer.register_parameter(f"of {count}", nn.Parameter(torch.empty(count, 4, 2, device="meta")))
    dist.init_process_group("fake", rank=3, world_size=4, store=FakeStore())
    try:
        with ranks.assuming_size(4):
            sharded_loading._shard_weights(layer)
        rows = {name: len(local(weight)) for name, weight in layer.named_parameters()}
    finally:
        dist.destroy_process_group()
    assert rows == {"of 3": 3, "of 6": 6, "of 7": 1, "of 8": 2, "of 9": 9}


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
        ([("T", SLEEPS[1])] * 10, [-5] * 10, None),
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
    assert_error(sspo("train", "--nproc", "2"), f"{PATIENCE} = long is not a number of seconds")
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
