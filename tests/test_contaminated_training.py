"""Training on problems that benchmarks also ask: `sspo train`, and what `sspo eval` and `sspo report` say about it."""

import json
from pathlib import Path

import pytest
from commands import Outcome, assert_error, sspo
from small_rows import write_jsonl

from sspo_cli.tracking.run_folder import RunFolder

OPTIONS = {
    "steps": 1,
    "model.tiny.hidden_size": 16,
    "model.tiny.heads": 1,
    "model.tiny.layers": 1,
    "rollout.prompts": 2,
    "rollout.group_size": 2,
    "rollout.max_new_tokens": 4,
    "cold_start.steps": 0,
    "evaluation.validation": 2,
    "tasks": "[{name: file, path: mine.jsonl}]",
    "evaluation.benchmarks": "[{name: file, path: asked.jsonl, split: test}]",
}


def train(name: str, **more: object) -> Outcome:
    options = {key.replace(".", "__"): value for key, value in OPTIONS.items()}
    return sspo("train", "--runs-dir", "runs", "--run", name, **{**options, **more})


def about(name: str, file: str = "config.json") -> dict:
    return json.loads(Path("runs", name, file).read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two runs on twelve problems, two of which are also in the benchmark files."""
    folder = tmp_path_factory.mktemp("contaminated")
    write_jsonl(folder / "mine.jsonl", ({"question": f"{n} + 1", "answer": str(n + 1)} for n in range(12)))
    write_jsonl(folder / "asked.jsonl", ({"question": f"Task: {n}+1", "answer": str(n + 1)} for n in (3, 5, 40)))
    write_jsonl(folder / "later.jsonl", ({"question": f"{n}+1", "answer": str(n + 1)} for n in (3, 5, 40)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, more in (("apart", {}), ("mixed", {"evaluation__decontaminate": "false"})):
            done = train(name, **more)
            assert done.returncode == 0, done.stderr
            (folder / f"{name}.txt").write_text(done.stdout)
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_what_a_benchmark_asks_is_left_out_and_recorded() -> None:
    data = about("apart")["data"]
    assert data["overlaps"] == [{"task": "mine", "benchmark": "asked", "rows": 2, "of": 12, "problems": 2}]
    assert (data["problems"], data["left_out"]["problems"]) == (8, 2)  # two more are validation problems
    said = "2 of the 12 rows of mine ask 2 problems of asked; they are left out of training"
    assert said in " ".join(Path("apart.txt").read_text().split())
    seen = {row["benchmark"]: row["trained_on"] for row in about("apart", "eval/summary.json")}
    assert seen == {"validation": 0, "asked": 0}


def test_what_is_kept_by_the_option_is_said_of_the_benchmark() -> None:
    data = about("mixed")["data"]
    assert (data["problems"], data["left_out"]) == (10, None)
    validated = sum(overlap["rows"] for overlap in data["overlaps"] if overlap["task"] == "validation")
    seen = {row["benchmark"]: row["trained_on"] for row in about("mixed", "eval/summary.json")}
    assert seen == {"validation": 0, "asked": 2 - validated}


def test_a_benchmark_that_is_measured_later_is_checked_too() -> None:
    done = sspo("eval", "--runs-dir", "runs", "apart", "mixed", "-b", "later.jsonl")
    assert done.returncode == 0, done.stderr
    trained_on = about("mixed", "eval/summary.json")[-1]["trained_on"]
    assert about("apart", "eval/summary.json")[-1]["trained_on"] == 0
    assert f"later (test): 3 problems, {trained_on} of them trained on" in done.stdout
    assert "apart, later (test): 3 problems, greedy" in done.stdout


def test_a_task_of_which_nothing_is_left_is_refused() -> None:
    assert_error(
        train("none", tasks="[{name: file, path: asked.jsonl}]"), "every problem of task asked is in a benchmark"
    )


def test_a_run_of_an_older_version_is_resumed_with_what_it_was_started_with(folder: Path) -> None:
    config = folder / "runs" / "mixed" / "config.json"
    before = about("mixed")
    options = json.loads(config.read_text())
    del options["options"]["evaluation"]["decontaminate"]
    config.write_text(json.dumps(options))
    assert not RunFolder.open(config.parent).config.evaluation.decontaminate
    config.write_text(json.dumps(before))
