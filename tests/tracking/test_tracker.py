import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.tracking.jsonl import JsonlSink
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.sink import Sink
from sspo_cli.tracking.tracker import Tracker


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "a", RunOptions(), []) as run:
        yield run


def test_the_run_folder_holds_every_step(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sspo_cli.tracking.jsonl.STATUS_SECONDS", 0.0)
    sink = JsonlSink(run)
    tracker = Tracker([sink])
    tracker.start(3)
    tracker.log(1, {"reward/mean": 1.5, "minibatch": 1})
    wait([sink._writing])
    assert (run.status["state"], run.status["step"], run.status["steps"]) == ("running", 1, 3)
    tracker.completions(2, [{"completion": "a"}, {"completion": "b"}])
    tracker.log(2, {"reward/mean": 1.6})
    tracker.finish("finished")
    assert run.metrics() == [{"step": 1, "reward/mean": 1.5, "minibatch": 1}, {"step": 2, "reward/mean": 1.6}]
    assert run.completions() == [{"step": 2, "completion": "a"}, {"step": 2, "completion": "b"}]
    assert (run.status["state"], run.status["step"]) == ("finished", 2)


def test_steps_do_not_wait_for_the_status_to_reach_the_disk(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sspo_cli.tracking.jsonl.STATUS_SECONDS", 0.0)
    tracker = Tracker([JsonlSink(run)])
    tracker.start(9)
    disk, flush = threading.Event(), os.fsync
    monkeypatch.setattr("os.fsync", lambda file: (disk.wait(10), flush(file)))
    start = time.perf_counter()
    for step in (1, 2, 3, 4):
        tracker.log(step, {})
    assert time.perf_counter() - start < 5
    assert (run.status["step"], len(run.metrics())) == (0, 4)
    disk.set()
    tracker.finish("interrupted")
    assert run.status["step"] == 4


def test_the_status_is_written_now_and_then_not_at_every_step(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JsonlSink(run)
    sink.start(9, 0)
    sink.log(1, {})
    wait([sink._writing])
    sink.log(2, {})
    assert run.status["step"] == 1
    monkeypatch.setattr(sink, "_status_due", 0.0)
    sink.log(3, {})
    wait([sink._writing])
    assert run.status["step"] == 3
    sink.finish("finished", None)


def test_a_disk_that_refuses_the_status_stops_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sspo_cli.tracking.jsonl.STATUS_SECONDS", 0.0)
    sink = JsonlSink(run)
    sink.start(9, 0)

    def refuse(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr("os.fsync", refuse)
        sink.log(1, {})
        wait([sink._writing])
    with pytest.raises(UserError, match=r"cannot write .*status\.json: No space left on device"):
        sink.log(2, {})
    sink.finish("failed", "no space")
    assert run.status["state"] == "failed"


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "stopped by the user"),
        (KeyboardInterrupt("asked to stop"), "interrupted", "asked to stop"),
        (UserError("no such data set"), "failed", "no such data set"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_an_exception_ends_the_run_with_its_reason(
    run: RunFolder, error: BaseException, state: str, reason: str
) -> None:
    tracker = Tracker([JsonlSink(run)])
    tracker.start(10, 4)
    with pytest.raises(type(error)), tracker:
        raise error
    assert {name: run.status[name] for name in ("state", "reason", "step", "steps")} == {
        "state": state,
        "reason": reason,
        "step": 4,
        "steps": 10,
    }


def test_a_failure_before_the_start_keeps_the_step_of_the_earlier_part(run: RunFolder) -> None:
    run.write_status("interrupted", 7, 120)
    with pytest.raises(UserError), Tracker([JsonlSink(run)]):
        raise UserError("the checkpoint is damaged")
    assert (run.status["state"], run.status["step"], run.status["steps"]) == ("failed", 7, 120)


def test_every_sink_is_closed_where_one_fails(run: RunFolder) -> None:
    class Failing(Sink):
        def finish(self, state: object, reason: object) -> None:
            raise RuntimeError

    class Closing(Sink):
        closed = False

        def finish(self, state: object, reason: object) -> None:
            self.closed = True

    first, last = Closing(), Closing()
    with pytest.raises(RuntimeError):
        Tracker([first, Failing(), last]).finish("finished")
    assert first.closed
    assert last.closed


def test_a_stage_ends_with_its_block_also_by_an_exception() -> None:
    class Listening(Sink):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def begin_stage(self, name: str, total: int) -> None:
            self.heard.append((name, total))

        def advance(self, amount: int, values: object) -> None:
            self.heard.append((amount, values))

        def end_stage(self) -> None:
            self.heard.append("end")

    sink = Listening()
    tracker = Tracker([sink])
    with tracker.stage("cold start", 400):
        tracker.advance(loss=0.5)
    with pytest.raises(KeyError), tracker.stage("evaluating", 8):
        raise KeyError
    assert sink.heard == [("cold start", 400), (1, {"loss": 0.5}), "end", ("evaluating", 8), "end"]


def test_a_skipped_step_is_valid_json(run: RunFolder) -> None:
    JsonlSink(run).log(1, {"policy/loss": float("nan")})
    assert json.loads(run.metrics_path.read_text(), parse_constant=pytest.fail) == {"step": 1, "policy/loss": None}
