"""A small trained run, and a copy of it for each test that evaluates it."""

import json
import shutil
from pathlib import Path

import pytest
from commands import sspo
from measured_runs import SMALL, rows


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small run and return the folder that holds it as `one`.

    The folder also holds a model folder, and a file of problems, every second of which the run answers correctly.
    """
    runs = tmp_path_factory.mktemp("runs")
    done = sspo("train", "--runs-dir", runs, "--run", "one", **SMALL)
    assert done.returncode == 0, done.stderr
    shutil.copytree(runs / "one" / "checkpoints" / "step-1", runs / "models" / "before")
    answered = [row for row in rows(runs / "one" / "eval" / "arithmetic.jsonl") if row["step"] == 2]
    answered = [row for row in answered if row["extracted"] and row["extracted"].strip().isdigit()]
    assert len(answered) >= 6
    problems = [
        {
            "id": row["id"],
            "question": row["prompt"].split("user\n")[1].split("<|im_end|>")[0],
            "answer": str(int(row["extracted"]) + number % 2),
        }
        for number, row in enumerate(answered)
    ]
    (runs / "mine.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy `trained` and make the copy the working directory of the commands."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
