"""Signals at any point: what is saved, what the run folder records, and that a resumed run repeats nothing."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Outcome, sspo
from small_runs import arguments, rows, run, weights, without_times

from sspo_cli.interruption import Interruption
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.run import saving
from sspo_cli.tracking.jsonl import JsonlSink
from sspo_cli.tracking.tracker import Tracker

ALL = Interruption.SIGNALS


def interrupt(
    monkeypatch: pytest.MonkeyPatch, method: str, when: Callable[..., bool], number: int = 1, kind: int = signal.SIGINT
) -> list[tuple[object, ...]]:
    """Raise a signal after call `number` of a tracker's method, counting calls whose arguments fulfil `when`.

    Returns the arguments of the counted calls; later ones are added.
    """
    original = getattr(Tracker, method)
    calls: list[tuple[object, ...]] = []

    def interrupted(self: Tracker, *args: object, **kwargs: object) -> object:
        result = original(self, *args, **kwargs)
        if when(*args, **kwargs):
            calls.append(args)
            if len(calls) == number:
                signal.raise_signal(kind)
        return result

    monkeypatch.setattr(Tracker, method, interrupted)
    return calls


def status(run_folder: Path) -> tuple[str, int]:
    said = json.loads((run_folder / "status.json").read_text())
    return said["state"], said["step"]


def checkpoints(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").glob("step-*"))


def assert_interrupted(done: Outcome, run_folder: Path, step: int) -> None:
    assert done.returncode == 130, done.stdout + done.stderr
    assert "--resume" in done.stderr
    assert status(run_folder) == ("interrupted", step)
    assert f"step-{step}" in checkpoints(run_folder)


@pytest.fixture
def kept_handlers() -> Iterator[list[int]]:
    """Yield the list of signals that reach the earlier handlers, which are replaced so that they end no process."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in ALL}
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def not_under_nohup() -> Iterator[None]:
    """Restore the default action of hangups, which `nohup` changes to ignoring them."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list of one number, the seconds of the clock that the interruption reads."""
    now = [100.0]
    monkeypatch.setattr("sspo_cli.interruption.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("first", ALL)
def test_the_first_signal_is_a_request_and_a_later_ctrl_c_acts_as_it_would_without(
    kept_handlers: list[int], clock: list[float], capfd: pytest.CaptureFixture[str], first: signal.Signals
) -> None:
    with Interruption() as interruption:
        assert not interruption.requested
        signal.raise_signal(first)
        assert interruption.requested
        assert kept_handlers == []
        assert "stopping at the next safe point" in capfd.readouterr().err
        clock[0] += 0.9  # one request, sent to the process and to its group
        signal.raise_signal(signal.SIGINT)
        assert kept_handlers == []
        clock[0] += 0.2
        signal.raise_signal(signal.SIGINT)
        assert kept_handlers == [signal.SIGINT]
        assert capfd.readouterr().err == ""
    signal.raise_signal(first)
    assert kept_handlers == [signal.SIGINT, first]


@pytest.mark.parametrize("first", ALL)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_what_a_batch_system_or_a_terminal_sends_again_is_the_same_request(
    kept_handlers: list[int], clock: list[float], first: signal.Signals, second: signal.Signals
) -> None:
    with Interruption() as interruption:
        signal.raise_signal(first)
        for seconds in (0.0, 2.0, 60.0):
            clock[0] += seconds
            signal.raise_signal(second)
        assert interruption.requested
        assert kept_handlers == []


def test_after_quiet_work_the_handlers_are_those_from_before(kept_handlers: list[int]) -> None:
    with Interruption() as interruption:
        pass
    for number in ALL:
        signal.raise_signal(number)
    assert kept_handlers == list(ALL)
    assert not interruption.requested


def test_a_request_that_cannot_be_answered_on_a_closed_terminal_is_one(kept_handlers: list[int]) -> None:
    stderr = os.dup(2)
    os.close(2)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.requested
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    assert kept_handlers == []


def test_a_hangup_that_was_ignored_at_the_start_stays_so(kept_handlers: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGHUP)
        assert not interruption.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_inside_an_evaluation_saves_the_step_and_what_is_measured(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send the signal in the evaluation at step 4, which has no checkpoint, and in the one after the last step, 10."""
    generate, measured = TorchEngine.generate, []

    def noted(self, request, on_completion=None):
        if request.sampling.temperature == 0:
            measured.append(len(request.prompts))
        return generate(self, request, on_completion)

    monkeypatch.setattr(TorchEngine, "generate", noted)
    (tmp_path / "cold-starts").symlink_to(undisturbed.parent / "cold-starts")
    stopped, partial = tmp_path / "stopped", tmp_path / "stopped" / "eval" / "partial"
    for step, evaluation, more in ((4, 2, []), (10, 3, ["--resume"])):  # evaluations at 0 and 4, then at 4, 8 and 10
        with monkeypatch.context() as patches:
            interrupt(patches, "stage", lambda name, _: name.startswith("evaluating"), evaluation)
            done = sspo(*arguments(tmp_path, "--run", "stopped", *more))
        assert_interrupted(done, stopped, step)
        assert [row["step"] for row in rows(stopped / "metrics.jsonl")] == list(range(1, step + 1))
        assert len(list(partial.iterdir())) == 1
    run(tmp_path, "--run", "stopped", "--resume")
    assert [count for count in measured if count == 20] == [20] * 4  # at 0, 4, 8 and 10, each begun once
    assert sum(count for count in measured if count < 20) < 40  # the rest continues where a signal stopped it
    assert list(partial.iterdir()) == []
    assert status(stopped) == ("finished", 10)
    assert without_times(stopped) == without_times(undisturbed)
    assert weights(stopped) == weights(undisturbed)
    for name in ("completions.jsonl", "weights.jsonl", "eval/summary.json", "eval/arithmetic.jsonl"):
        assert (stopped / name).read_text() == (undisturbed / name).read_text(), name


QUICK = {
    "steps": 3,
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
}


def test_a_signal_in_the_very_last_step_finishes_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, "log", lambda step, _: step == 3)
    done = sspo("train", "--runs-dir", tmp_path, "--run", "a", **QUICK)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "a") == ("finished", 3)
    assert checkpoints(tmp_path / "a") == ["step-3"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_a_step_stops_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    interrupt(monkeypatch, "log", lambda step, _: step == 2, kind=number)
    assert_interrupted(sspo("train", "--runs-dir", tmp_path, "--run", "a", **QUICK), tmp_path / "a", 2)
    assert len(rows(tmp_path / "a" / "metrics.jsonl")) == 2


def test_a_sigterm_that_comes_again_while_the_state_is_saved_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm signals every process of a job, and a sweep forwards the signal to its trials."""
    interrupt(monkeypatch, "log", lambda step, _: step == 2, kind=signal.SIGTERM)
    repeated = []

    def signalled(name: str, original: Callable[..., None]) -> Callable[..., None]:
        def again(*args: object) -> None:
            repeated.append(name)
            signal.raise_signal(signal.SIGTERM)
            original(*args)

        return again

    for owner, name in ((saving, "save_checkpoint"), (JsonlSink, "finish")):
        monkeypatch.setattr(owner, name, signalled(name, getattr(owner, name)))
    assert_interrupted(sspo("train", "--runs-dir", tmp_path, "--run", "a", **QUICK), tmp_path / "a", 2)
    assert repeated == ["save_checkpoint", "finish"]


@pytest.mark.parametrize("step", [2, 4])
def test_a_signal_in_the_cold_start_saves_its_step_and_the_resumed_run_continues_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Send the signal between the checkpoints of the cold start, and in its last step."""
    options = {**QUICK, "steps": 1, "cold_start__steps": 4, "cold_start__checkpoint_every": 100}
    steps = interrupt(monkeypatch, "advance", lambda _=1, **values: "loss" in values, number=step)
    done = sspo("train", "--runs-dir", tmp_path, "--run", "a", **options)
    assert done.returncode == 130, done.stdout + done.stderr
    assert status(tmp_path / "a") == ("interrupted", 0)
    (cache,) = (tmp_path / "cold-starts").iterdir()
    assert [path.name for path in cache.glob("step-*")] == [f"step-{step}"]
    assert len(steps) == step
    assert sspo("train", "--runs-dir", tmp_path, "--run", "a", "--resume").returncode == 0
    assert [path.name for path in cache.glob("step-*")] == ["step-4"]
    assert len(steps) == 4  # no step is repeated
