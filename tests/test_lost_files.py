"""Files lost next to a checkpoint, and changes of the program, are reported at the next start."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import sspo
from small_runs import rows

from sspo_cli.tracking import program
from sspo_cli.tracking.tracker import Tracker

QUICK = {
    "steps": 4,
    "model__tiny__hidden_size": 32,
    "model__tiny__heads": 1,
    "model__tiny__layers": 1,
    "rollout__prompts": 2,
    "rollout__group_size": 2,
    "rollout__max_new_tokens": 4,
    "learning__mu": 1,
    "cold_start__steps": 0,
    "tasks": "[{name: arithmetic, limit: 50}]",
    "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 3}]",
    "evaluation__every": 1,
    "checkpoint__every": 1,
}


class Killed(BaseException):
    """Exception that leaves the files as a SIGKILL would."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was killed in step 3, after the checkpoint of step 2."""
    runs = tmp_path_factory.mktemp("runs")
    log = Tracker.log

    def kill(self: Tracker, step: int, metrics: dict) -> None:
        log(self, step, metrics)
        if step == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Tracker, "log", kill)
        with pytest.raises(Killed):
            sspo("train", "--runs-dir", runs, "--run", "a", **QUICK)
    return runs / "a"


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "a")


def resume(run: Path) -> str:
    done = sspo("train", "--runs-dir", run.parent, "--run", run.name, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def steps(path: Path) -> list[int]:
    return [row["step"] for row in rows(path)]


def without_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.jsonl", lambda content: b""),
        ("completions.jsonl", None),
        ("weights.jsonl", without_half),
        ("metrics.jsonl", lambda content: content.split(b"\n", 1)[1]),
    ],
    ids=["emptied", "removed", "cut", "without its first row"],
)
def test_rows_that_are_missing_are_reported(copy: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    if damage:
        (copy / name).write_bytes(damage((copy / name).read_bytes()))
    else:
        (copy / name).unlink()
    said = resume(copy)
    assert f"{name} differs from its record in the checkpoint of step 2" in said
    (start,) = json.loads((copy / "config.json").read_text())["resumed"]
    assert [name in sentence for sentence in start["lost"]] == [True]
    assert steps(copy / name)[-1] == 4
    assert len(set(map(str, rows(copy / name)))) == len(rows(copy / name))


def test_what_is_doubled_or_appended_goes(copy: Path) -> None:
    names = ("metrics.jsonl", "completions.jsonl", "weights.jsonl")
    before = {name: rows(copy / name) for name in names}
    for name in names:
        (copy / name).write_bytes((copy / name).read_bytes() * 2)
    assert "differs from its record" not in resume(copy)
    for name in names:
        assert [row for row in rows(copy / name) if row["step"] <= 2] == [r for r in before[name] if r["step"] <= 2]
        assert sorted(set(steps(copy / name))) == [1, 2, 3, 4]


def test_a_row_that_was_changed_is_noticed(copy: Path) -> None:
    path = copy / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 1,', '"step": 2,', 1))
    assert "metrics.jsonl differs from its record in the checkpoint of step 2" in resume(copy)


def test_nothing_is_reported_of_files_that_are_whole(copy: Path) -> None:
    said = resume(copy)
    assert "differs from its record" not in said
    assert "instead of" not in said
    assert "lacked" not in said
    (start,) = json.loads((copy / "config.json").read_text())["resumed"]
    assert (start["after"], start["lost"]) == ("step-2", [])
    assert start["revision"] == json.loads((copy / "config.json").read_text())["revision"]


def test_a_lost_summary_is_written_again_from_the_checkpoint(copy: Path) -> None:
    summary = copy / "eval" / "summary.json"
    before = json.loads(summary.read_text())
    assert [row["step"] for row in before] == [0, 1, 2]
    summary.write_text(json.dumps(before[:1] + before[:1]))
    said = resume(copy)
    assert "summary.json lacked 1 measurement, restored" in said  # step 2 was measured after its checkpoint
    assert "summary.json had 1 measurement twice" in said
    assert json.loads(summary.read_text())[:3] == before


@pytest.mark.parametrize("damage", ["removed", "cut", "doubled"])
def test_problems_that_are_missing_are_reported(copy: Path, damage: str) -> None:
    path = copy / "eval" / "arithmetic.jsonl"
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content * 2 if damage == "doubled" else content.split(b"\n", 1)[1])
    said = resume(copy).replace("\n", " ")
    left = {"removed": 0, "cut": 2, "doubled": 6}[damage]
    assert f"arithmetic.jsonl has {left} rows of step 0 instead of 3" in said


def test_files_are_on_the_disk_before_the_checkpoint_has_its_name(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync, rename = os.fsync, os.rename
    names = ("metrics.jsonl", "completions.jsonl", "weights.jsonl", "eval/arithmetic.jsonl", "eval/summary.json")
    missing: list[str] = []

    def checked_rename(source: Path, target: Path) -> None:
        if "step-3" in str(target):
            missing.extend(name for name in names if (copy / name).stat().st_ino not in flushed)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", lambda number: (flushed.append(os.fstat(number).st_ino), fsync(number))[1])
    monkeypatch.setattr(os, "rename", checked_rename)
    resume(copy)
    assert (copy / "checkpoints" / "step-4").is_dir()
    assert missing == []


def test_another_program_is_reported_and_recorded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = program.package_versions()
    monkeypatch.setattr(program, "package_versions", lambda: {**versions, "torch": "99.0"})
    monkeypatch.setattr(program, "git_revision", lambda: "f00")
    said = resume(copy).replace("\n", " ")
    assert f"torch: {versions['torch']} -> 99.0" in said
    assert "-> f00" in said
    (start,) = json.loads((copy / "config.json").read_text())["resumed"]
    assert (start["after"], start["revision"], start["packages"]["torch"]) == ("step-2", "f00", "99.0")
    assert start["command"][:2] == ["sspo", "train"]
