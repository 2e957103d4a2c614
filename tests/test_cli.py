"""The four commands on a small finished run."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from commands import assert_error, sspo

SMALL = {
    "steps": 2,
    "model__tiny__hidden_size": 32,
    "model__tiny__heads": 1,
    "model__tiny__layers": 1,
    "rollout__prompts": 4,
    "rollout__group_size": 4,
    "rollout__max_new_tokens": 48,
    "cold_start__steps": 60,
    "cold_start__learning_rate": 1e-2,
    "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 30}]",
}


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
    assert (
        "synthetic completions, of at most 2: perfect 2, respelt 2, wrong answer 1, broken format 0.25, empty 0" in said
    )
    assert "arithmetic Pass@1" in said
    assert (runs / "sspo-atanlog-seed0").is_dir()
    assert (runs / "cold-starts").is_dir()


def test_the_default_name_is_free(runs):
    (runs / "sspo-atanlog-seed0").mkdir(exist_ok=True)
    without = {name: value for name, value in SMALL.items() if not name.startswith("cold_start")}
    done = sspo("train", "--runs-dir", runs, **without, cold_start__steps=0)
    assert done.returncode == 0, done.stderr
    assert (runs / "sspo-atanlog-seed0-2" / "metrics.jsonl").is_file()


def test_dry_run_prints_a_config_that_gives_the_same_and_makes_nothing(tmp_path):
    done = sspo("train", "--method", "gmpo", "--runs-dir", tmp_path, "--dry-run", seed=3)
    (tmp_path / "printed.yaml").write_text(done.stdout)
    assert sspo("train", "-c", tmp_path / "printed.yaml", "--dry-run").stdout == done.stdout
    assert "method: gmpo" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]


def test_report_writes_tables_and_figures(runs, tmp_path):
    done = sspo("report", runs / "one", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    page, counts = done.stdout.splitlines()
    assert Path(page) == tmp_path / "report" / "index.html"
    written = list((tmp_path / "report").iterdir())
    assert all(path.stat().st_size > 0 for path in written)
    suffixes = Counter(path.suffix.removeprefix(".") for path in written if path != Path(page))
    assert sorted(counts.removeprefix("next to it: ").split(", ")) == sorted(f"{n} {s}" for s, n in suffixes.items())
    assert set(suffixes) == {"md", "csv", "tex", "json", "parquet", "png", "svg", "pdf"}
    assert_error(
        sspo("report", tmp_path / "report", "--out", tmp_path / "other"),
        "there are no runs in ",
    )
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


def test_the_help_of_train_names_every_method_and_gate():
    from sspo_cli.objectives import METHODS, SSPO_GATES

    said = " ".join(sspo("train", "--help").stdout.replace("│", " ").split())
    assert all(name in said for name in (*METHODS, *SSPO_GATES, "module:function"))
    assert "Accept your own gate even if it breaks the paper's conditions." in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "train --seed x",
            "`--seed x` is not valid: input should be a valid integer, unable to parse string as an integer; see",
        ),
        (
            "eval runs/a --samples 0",
            "`--samples 0` is not valid: input should be greater than or equal to 1; see `sspo eval",
        ),
        ("eval runs/a --temperature hot", "`--temperature hot` is not valid: input should be a valid number"),
        (
            "report runs --select worst",
            "`--select worst` is not valid: 'worst' is not one of 'last', 'best'; see `sspo report",
        ),
        ("train --sede 1", "`sspo train` has no option --sede; did you mean --seed?"),
        ("train --foo", "`sspo train` has no option --foo; see `sspo train --help`"),
        ("train --fork", "`sspo train` has no option --fork; "),
        ("eval model --temp 1", "`sspo eval` has no option --temp; did you mean --temperature?"),
        ("train -x", "`sspo train` has no option -x; see `sspo train --help`"),
        ("train --steps 5", "`sspo train` has no option --steps; it is an option of a run: write -s steps=VALUE"),
        ("train --optimizer.learning-rate=1", "write -s optimizer.learning_rate=VALUE"),
        ("--verzion", "`sspo` has no option --verzion; did you mean --version?"),
        ("trian", "there is no command trian; did you mean train?"),
        (
            "sweep",
            "`sspo sweep` needs -c / --config: the sweep's YAML file, or a preset of `sspo configs`; see `sspo sweep --help`",
        ),
        (
            "report",
            "`sspo report` needs RUN_OR_FOLDER...: runs and measured models by name or folder, or folders of them; "
            "see `sspo report --help`",
        ),
        ("train --seed", "option '--seed' requires an argument"),
        ("train --resume=yes", "option '--resume' does not take a value"),
        ("train left over", "`sspo train` takes no argument `left over`; see `sspo train --help`"),
        ("train steps=5", "`sspo train` takes no argument `steps=5`; did you mean -s steps=5?"),
        ("sweep -c a.yaml b.yaml", "`sspo sweep` takes no argument `b.yaml`; did you mean -c b.yaml?"),
        (f"train --seed {'9' * 5000}", "9…9"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(words, said):
    done = sspo(*words.split())
    assert_error(done, said)
    assert done.stdout == ""
    assert len(done.stderr) < 400


def test_without_a_command_there_is_the_help():
    done = sspo()
    assert done.returncode == 2
    assert "sweep" in done.stdout
    assert done.stderr == ""
