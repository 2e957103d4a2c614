"""The view of a sweep in progress, on a terminal and without one."""

from io import StringIO

from rich.console import Console

from sspo_cli.config import RunOptions
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.view import TrialsView
from sspo_cli.tracking.files import append_jsonl


def trials(*names: str) -> list[Trial]:
    return [Trial(name, {}, RunOptions(threads=8)) for name in names]


def test_the_view_of_a_terminal_shows_state_step_reward_and_time_left(tmp_path):
    (tmp_path / "a").mkdir()
    for step in range(1, 5):
        append_jsonl(tmp_path / "a" / "metrics.jsonl", {"step": step, "reward/mean": 0.5 * step, "time/step": 2.0})
    console = Console(file=StringIO(), force_terminal=True, width=100, height=12)
    with TrialsView(trials("a", "b", "c"), tmp_path, console) as view:
        view.started("a", "GPU 1")
        view.ended("c", "failed")
        with console.capture() as captured:
            console.print(view.table())
    lines = captured.get().splitlines()
    assert "1 running, 1 failed, 1 waiting" in lines[0]
    row = next(line for line in lines if "running" in line and "GPU 1" in line)
    assert all(text in row for text in ("4/160", "2.00", "0:05:12"))  # 156 steps of 2 seconds


def test_the_view_says_how_long_the_whole_sweep_takes(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("sspo_cli.sweep.view.time.monotonic", lambda: now)

    def step(name: str, number: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        append_jsonl(tmp_path / name / "metrics.jsonl", {"step": number})

    step("a", 60)  # taken before this process
    console = Console(file=(said := StringIO()), width=200)
    with TrialsView(trials("a", "b", "c"), tmp_path, console) as view:
        view.started("a", "slot 1")
        now += 50.0
        step("a", 80)
        view.started("b", "slot 2")  # 20 steps took 50 seconds, and 80 + 160 + 160 are left
        step("a", 160)
        view.ended("a", "finished")  # 100 steps took 50 seconds, and 160 + 160 are left
        view.ended("b", "failed")
        view.ended("c", "finished")
    left = [line.rpartition("(")[2].removesuffix(")") for line in said.getvalue().splitlines()[1:]]
    assert left == [
        "0 of 3 finished",
        "0 of 3 finished, about 0:16:40 left",
        "1 of 3 finished, about 0:02:40 left",
        "1 of 3 finished, about 0:01:20 left",
        "2 of 3 finished",
    ]


def test_a_view_with_little_room_says_what_it_leaves_out(tmp_path):
    console = Console(file=StringIO(), force_terminal=True, width=80, height=10)
    with TrialsView(trials(*"abcdefgh"), tmp_path, console) as view, console.capture() as captured:
        console.print(view.table())
    assert "and 4 more" in captured.get()
