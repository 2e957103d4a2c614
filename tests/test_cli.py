"""The four commands on a small finished run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import assert_told, sspo

from sspo_cli.intervals import wilson

SMALL = {
    "steps": 2,
    "model__tiny__hidden_size": 32,
    "model__tiny__heads": 1,
    "model__tiny__layers": 1,
    "rollout__prompts": 4,
    "rollout__group_size": 4,
    "rollout__max_new_tokens": 48,
    "cold_start__steps": 150,
    "cold_start__learning_rate": 1e-2,
    "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 30}]",
}
BENCHMARK = {"evaluation__benchmarks": SMALL["evaluation__benchmarks"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    done = sspo("train", "--runs-dir", runs, "--run", "one", **SMALL)
    assert done.returncode == 0, done.stderr
    return runs


def test_train_says_what_it_did(runs):
    said = sspo("train", "--runs-dir", runs, **SMALL).stdout
    assert "step 1/2" in said
    assert "step 2/2" in said
    assert "rewards of synthetic completions: perfect 2, wrong answer 1, broken format 0.25, empty 0" in said
    assert "arithmetic Pass@1" in said
    assert (runs / "sspo-atanlog-seed0").is_dir()
    assert (runs / "cold-starts").is_dir()


def test_the_default_name_is_free(runs):
    sspo("train", "--runs-dir", runs, **SMALL)
    sspo("train", "--runs-dir", runs, **SMALL)
    names = {path.name for path in runs.glob("sspo-atanlog-seed0*")}
    assert {"sspo-atanlog-seed0", "sspo-atanlog-seed0-2"} <= names


def test_dry_run_prints_a_config_that_gives_the_same_and_makes_nothing(tmp_path):
    done = sspo("train", "--method", "gmpo", "--runs-dir", tmp_path, "--dry-run", seed=3)
    (tmp_path / "printed.yaml").write_text(done.stdout)
    assert sspo("train", "-c", tmp_path / "printed.yaml", "--dry-run").stdout == done.stdout
    assert "method: gmpo" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]


def test_eval_of_a_run_a_checkpoint_and_a_model_folder_agree(runs):
    in_training = json.loads((runs / "one" / "eval" / "summary.json").read_text())[-1]
    checkpoint = runs / "one" / "checkpoints" / "step-2"
    for target in ("one", runs / "one", checkpoint):
        assert sspo("eval", target, "--runs-dir", runs).returncode == 0
        assert json.loads((runs / "one" / "eval" / "summary.json").read_text())[-1]["correct"] == in_training["correct"]
    model = runs / "model"
    model.symlink_to(checkpoint)
    done = sspo("eval", model, "--runs-dir", runs, rollout__max_new_tokens=48, **BENCHMARK)
    assert done.returncode == 0, done.stderr
    folder = next(path for path in runs.glob("model-*model"))
    summary = json.loads((folder / "eval" / "summary.json").read_text())[-1]
    assert (summary["correct"], summary["n"]) == (in_training["correct"], 30)
    assert (summary["low"], summary["high"]) == pytest.approx(wilson(summary["correct"], 30))


def test_eval_of_a_local_file_counts_what_is_right(runs, tmp_path):
    """Golds taken from what the model says greedily: half of them kept, half of them changed."""
    rows = [json.loads(line) for line in (runs / "one" / "eval" / "arithmetic.jsonl").read_text().splitlines()]
    answered = [row for row in rows if row["extracted"] and row["extracted"].strip().isdigit()]
    assert len(answered) >= 6
    questions = [row["prompt"].split("user\n")[1].split("<|im_end|>")[0] for row in answered]
    golds = [str(int(row["extracted"]) + number % 2) for number, row in enumerate(answered)]
    file = tmp_path / "mine.jsonl"
    file.write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in zip(questions, golds, strict=True))
    )
    done = sspo("eval", "one", "--runs-dir", runs, "-b", file)
    assert done.returncode == 0, done.stderr
    right = (len(answered) + 1) // 2
    assert f"Pass@1 {right / len(answered):.1%}" in done.stdout
    assert f"of {len(answered)} problems" in done.stdout


def test_a_limited_eval_is_printed_and_not_recorded(runs):
    before = (runs / "one" / "eval" / "summary.json").read_text()
    assert "of 5 problems" in sspo("eval", "one", "--runs-dir", runs, "--limit", 5).stdout
    assert (runs / "one" / "eval" / "summary.json").read_text() == before
    assert_told(sspo("eval", "one", "--runs-dir", runs, seed=1), "is measured with its own options")


def test_eval_tells_what_it_cannot_find(runs, tmp_path):
    assert_told(sspo("eval", "nothing", "--runs-dir", runs), "there is no run nothing in")
    assert_told(
        sspo("eval", "one", "--runs-dir", runs, "-b", "gsm9k"), "unknown benchmark gsm9k; use arithmetic, gsm8k"
    )


def test_report_writes_tables_and_figures(runs, tmp_path):
    done = sspo("report", runs / "one", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    written = [Path(line) for line in done.stdout.split()]
    assert all(path.stat().st_size > 0 for path in written)
    assert {path.suffix for path in written} >= {".md", ".csv", ".tex", ".png", ".svg", ".pdf"}
    assert_told(sspo("report", tmp_path / "report", "--out", tmp_path / "other"), "no readable runs in")
    assert not (tmp_path / "other").exists()


def test_help_answers_at_once_and_names_the_four_commands():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        said = subprocess.run(
            [sys.executable, "-m", "sspo_cli", "--help"], capture_output=True, text=True, check=True
        ).stdout
        times.append(time.perf_counter() - start)
    assert all(name in said for name in ("train", "eval", "sweep", "report"))
    assert min(times) < 2  # about 0.2 s on a quiet machine; without lazy imports it would be 3 s and more
