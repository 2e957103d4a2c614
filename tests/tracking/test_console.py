import functools
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sspo_cli.config import RunOptions
from sspo_cli.tracking.console import LogSink, PlainSink, console_sink
from sspo_cli.tracking.live import LiveSink
from sspo_cli.tracking.pulse import Pulse
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.sink import Sink
from sspo_cli.tracking.time_left import StageProgress, TimeLeft

METRICS = {
    "reward/mean": 1.25,
    "reward/answer": 0.375,
    "reward/format": 0.875,
    "policy/entropy": 0.4321,
    "weights/attenuated": 0.0725,
    "optimizer/learning_rate": 2e-4,
    "policy/grad_norm": 0.125,
    "completions/length": 31.5,
    "completions/truncated": 0.25,
    "time/tokens_per_second": 1234.4,
    "time/step": 0.5,
    "time/sampling": 0.3,
    "time/grading": 0.04,
    "time/learning": 0.16,
    "time/elapsed": 30.0,
}
SUMMARY = {"pass_at_1": 0.342, "low": 0.302, "high": 0.384, "n": 512, "truncated": 10}
NASTY = "[bold]half [/nope] <think>\x1b[2J\x07 \ud83d ２ + ２</think>\n" + "long " * 400


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "first-run", RunOptions(), []) as run:
        yield run


def tell(sink: Sink) -> None:
    sink.start(120, 20)
    sink.begin_stage("cold start", 400)
    sink.advance(400, {"loss": 0.25})
    sink.end_stage()
    row = {"completion": NASTY, "gold": "[4]", "r_answer": 1.0, "r_format": 0.5}
    sink.completions(21, [row])
    sink.log(21, {})  # any metric may be absent
    sink.log(50, METRICS)
    sink.evaluation(50, "arithmetic", SUMMARY)
    sink.note("a [note]")


def plain(encoding: str = "utf-8") -> tuple[PlainSink, io.BytesIO]:
    buffer = io.BytesIO()
    return PlainSink(Console(file=io.TextIOWrapper(buffer, encoding=encoding, write_through=True))), buffer


def test_elsewhere_than_on_a_terminal_a_step_is_one_line() -> None:
    sink, buffer = plain()
    tell(sink)
    sink.finish("failed", "no space left")
    lines = buffer.getvalue().decode().splitlines()
    assert lines[0].startswith("cold start: 400/400 in 0:00:0")
    assert lines[0].endswith(", loss 0.25")
    assert lines[2] == (
        "step  50/120  reward 1.250 (answer 0.375, format 0.875)  entropy 0.432  attenuated   7.2%  "
        "rate 2.0e-04  grad 0.125  length   31.5  truncated  25%  "
        "   1234 tokens/s    0.50 s  0:01:10 left"  # 30 steps took 30 s since the resume, and 70 are left
    )
    for word in ("reward", "entropy", "attenuated", "tokens/s"):
        assert lines[1].index(word) == lines[2].index(word)  # aligned even if metrics are absent
    assert lines[3] == "step 50: arithmetic Pass@1 34.2 % (30.2 to 38.4 %), n = 512, 2.0 % truncated"
    assert lines[4:] == ["a [note]", "failed"]


OF_RANKS = {
    "time/sync": 1.2,
    "time/rank_0_sync": 1.2,
    "time/rank_1_sync": 1.25,
    "time/rank_0_tokens_per_second": 640.2,
    "time/rank_1_tokens_per_second": 609.7,
}


@pytest.mark.parametrize(
    ("measured", "parts"),
    [
        ({"time/sync": 1.2, "device/memory": 71.26}, ["sync 1.20 s", "memory 71.3 GB"]),
        ({"time/sync": 0.0, "device/flop_utilization": 0.412}, ["FLOPs 41%"]),
        (
            {**OF_RANKS, "device/rank_0_memory": 71.26, "device/rank_1_memory": 72.9},
            ["sync 1.25 s", "by rank 610 to 640 tokens/s", "memory 71.3 to 72.9 GB"],
        ),
        (
            {**OF_RANKS, "device/rank_0_memory": 71.26, "device/rank_1_memory": 71.31},  # equal when printed
            ["sync 1.25 s", "by rank 610 to 640 tokens/s", "memory 71.3 GB"],
        ),
    ],
)
def test_what_was_measured_of_ranks_and_devices_is_at_the_end(run: RunFolder, measured, parts) -> None:
    sink, buffer = plain()
    sink.start(120, 20)
    sink.log(50, {**METRICS, **measured})
    (line,) = buffer.getvalue().decode().splitlines()
    assert line.endswith("  ".join([" left", *parts]))
    live = LiveSink(run, Console(file=io.StringIO(), width=100))
    live.log(50, {**METRICS, **measured})
    live.log(51, {**METRICS, **{name: 0.0 if "sync" in name else value for name, value in measured.items()}})
    recording = Console(file=io.StringIO(), width=100, record=True)
    recording.print(live)
    # Like the times of sampling, they are also shown in steps without sampling.
    assert "  ".join(parts) in recording.export_text()


def test_a_stage_counts_what_was_done_in_all_its_parts() -> None:
    sink, buffer = plain()
    sink.begin_stage("rendering prompts", 600)
    for part in (256, 256, 88):
        sink.advance(part, {})
    sink.end_stage()
    assert buffer.getvalue().decode().startswith("rendering prompts: 600/600 in ")


def test_plain_lines_survive_a_poor_encoding_and_a_reader_that_left() -> None:
    sink, buffer = plain("ascii")
    sink.note("ρ \x1b[31m \ud83d")
    assert buffer.getvalue() == b"? ?[31m ?\n"

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    PlainSink(Console(file=Gone())).note("to nobody")


def test_only_a_terminal_that_can_draw_gets_the_live_view(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminal(encoding: str) -> Console:
        return Console(file=io.TextIOWrapper(io.BytesIO(), encoding=encoding), force_terminal=True)

    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(console_sink(run, terminal("utf-8")), LiveSink)
    assert isinstance(console_sink(run, terminal("ascii")), PlainSink)
    assert isinstance(console_sink(run, Console(file=io.StringIO())), PlainSink)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(console_sink(run, terminal("utf-8")), PlainSink)


def draw(run: RunFolder, width: int, **start: Any) -> str:
    """Return what the live view shows at this width after a run's worth of events."""
    sink = LiveSink(run, Console(file=io.StringIO(), width=width, force_terminal=True))
    tell(sink)
    sink.begin_stage("evaluating on arithmetic", 512)
    recording = Console(file=io.StringIO(), width=width, record=True)
    recording.print(sink)
    sink.finish("finished", None)
    return recording.export_text()


def test_the_live_view_shows_the_run_at_a_glance(run: RunFolder) -> None:
    text = draw(run, 100)
    assert all(len(line) <= 100 for line in text.splitlines())
    for shown in (
        "first-run · sspo atanlog · seed 0",
        "50/120",
        "0/512",
        "evaluating on arithmetic",
        "1.250",
        "answer 0.375  format 0.875",
        "0.432",
        "7.2%",
        "rate 2.0e-04  grad 0.125  length 31.5  truncated 25%",
        "0:01:10 left",
        "1234 tokens/s",
        "sampling 0.30 s  grading 0.04 s  learning 0.16 s",
        "arithmetic 34.2 % (30.2 to 38.4 %), n = 512, 2.0 % truncated",
        "[bold]half [/nope] <think>",  # shown as sampled, not read as markup
        "answer 1.0  format 0.5  gold [4]",
    ):
        assert shown in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "…" in text  # the completion is cut


@pytest.mark.parametrize("width", [40, 12, 1])
def test_the_live_view_fits_narrow_terminals(run: RunFolder, width: int) -> None:
    text = draw(run, width)
    assert all(len(line) <= width for line in text.splitlines())
    if width == 40:
        assert "50/120" in text
        assert "answer 0.375" in text


def test_the_live_view_does_not_end_a_run_whose_terminal_is_gone(run: RunFolder) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    sink = LiveSink(run, Console(file=Gone(), force_terminal=True))
    tell(sink)
    sink.finish("finished", None)


def test_the_live_view_can_be_closed_before_it_began(run: RunFolder) -> None:
    LiveSink(run, Console(file=io.StringIO(), force_terminal=True)).finish("failed", "no such model")


def test_the_time_left_counts_the_evaluations_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    left = TimeLeft(every=40)
    left.start(100, 0)
    for step, elapsed, said in ((0, 0.0, "-"), (10, 20.0, "0:04:30"), (40, 80.0, "0:03:30"), (50, 130.0, "0:02:40")):
        if step:
            left.log(step, {"time/elapsed": elapsed})  # 2 s a step
        assert str(left) == said  # evaluations at 40, 80 and 100 take 30 s each
        if step in (0, 40):
            left.begin_stage()
            now += 30.0
            left.end_stage()
            left.evaluation(step)


def test_a_stage_says_how_far_it_is_and_how_long_it_still_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stage = StageProgress("cold start", 100)
    assert stage.progress() == "cold start: 0/100, - left"
    stage.advance(40, {})  # done before the stage was interrupted
    now = 20.0
    stage.advance(10, {"loss": 0.25})
    assert stage.progress() == "cold start: 50/100, 0:01:40 left, loss 0.25"


def test_without_a_terminal_there_is_a_line_whenever_nothing_was_said_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sspo_cli.tracking.console.Pulse", functools.partial(Pulse, seconds=0.05))
    sink, buffer = plain()
    sink.start(120, 20)
    sink.begin_stage("cold start", 400)
    sink.advance(100, {})
    wait_for(lambda: b"cold start: 100/400, " in buffer.getvalue())
    sink.end_stage()
    wait_for(lambda: b"step 20/120: working for 0:00:00, - left" in buffer.getvalue())
    sink.finish("finished", None)
    said = buffer.getvalue()
    time.sleep(0.2)
    assert buffer.getvalue() == said


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_log_of_a_run_has_whole_lines_without_credentials_whatever_the_console_shows(run: RunFolder) -> None:
    sink = LogSink(run)
    tell(sink)
    sink.note("from http://me:secret@host:8000\x1b[2J")
    sink.finish("failed", "no space left")
    lines = (run.path / "console.log").read_text().splitlines()
    assert lines[0].endswith(": from step 20 to 120")
    assert lines[-3:] == ["from http://***@host:8000\ufffd[2J", "failed", "no space left"]
    assert any(line.startswith("step  50/120  reward 1.250") for line in lines)
