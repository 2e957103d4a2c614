"""The small commands next to the four main ones: options, configs, runs, version, completion."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from commands import assert_error, sspo
from report.synthetic_runs import evaluation, write_run
from typer.testing import CliRunner

from sspo_cli import cli
from sspo_cli.config import RunOptions, flatten, load_config
from sspo_cli.config.listing import list_options
from sspo_cli.config.presets import FOLDER, presets
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.time_left import evaluations_left, time_left_of

PROJECT = Path(__file__).parents[1]


def test_the_version_is_the_project_s():
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert sspo("--version").stdout == f"sspo {version}\n"


def test_a_shell_completes_commands_and_options():
    for words, completed in (("sspo swe", "sweep"), ("sspo train --dry", "--dry-run")):
        asked = {"_SSPO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        said = CliRunner().invoke(cli.app, [], prog_name="sspo", env=asked).stdout
        assert completed in said.split()


def test_every_option_is_listed_with_a_description():
    options = list_options()
    listed = {option.name for option in options if option.default is not None}
    whole = load_config([], ["model.lora={}", "rollout.vllm={server: a, exchange: b}"]).model_dump()
    assert {key for key, _ in flatten(whole)} - {"tasks", "objective"} <= listed | {"chat.template_kwargs"}
    assert [option.name for option in options if not option.description] == []


@pytest.mark.parametrize(
    ("section", "listed", "left_out"),
    [
        (
            "optimizer",
            "optimizer.learning_rate = 0.0002    (number)\n      highest learning rate, which is reached after the warm-up",
            "cold_start.",
        ),
        ("model.lora", "model.lora.rank = 16    (integer)", "model.name"),
        ("learning.mu", "learning.mu = 2    (integer)", "learning.epochs"),
        ("warmup_steps", "cold_start.warmup_steps = 50", "optimizer.betas"),
        ("tasks", "tasks[].limit = null    (integer, null)", "evaluation"),
        ("evaluation", "evaluation.benchmarks[].max_new_tokens", "benchmarks[].limit"),
    ],
)
def test_a_part_of_the_options(section, listed, left_out):
    said = sspo("options", section).stdout
    assert listed in said
    assert left_out not in said


def test_an_option_that_does_not_exist():
    assert_error(sspo("options", "optimiser"), "there is no option or section optimiser; did you mean optimizer?")
    assert_error(sspo("options", "zzz"), "no option or section zzz; the sections are chat, objective, model")


def test_presets_are_the_project_s_configs_and_go_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {path.relative_to(PROJECT / "configs") for path in (PROJECT / "configs").rglob("*.yaml")}
    assert {preset.file.relative_to(FOLDER) for preset in presets()} == files
    assert sspo("configs", "table1").stdout == (PROJECT / "configs" / "table1.yaml").read_text()
    listed = sspo("configs").stdout
    for preset in presets():
        assert f"{preset.name}\n    {preset.comments[1]}\n" in listed
        assert preset.comments[1].endswith(".")  # a whole sentence, even if it continues in the next line
    assert "a policy can unlearn what its cold start taught.\n" in listed
    assert "../" not in listed
    assert load_config([Path("calculator")]) == load_config([PROJECT / "configs" / "calculator.yaml"])
    assert "27 trials, to be run in runs/demo" in sspo("sweep", "-c", "demo", "--dry-run").stdout
    (tmp_path / "study").write_text("steps: 7\n")  # a file takes precedence over a preset
    assert load_config([Path("study")]).steps == 7


def test_a_preset_that_does_not_exist():
    assert_error(sspo("configs", "tabel1"), "there is no preset tabel1; did you mean table1?")
    assert_error(
        sspo("train", "-c", "claculator", "--dry-run"),
        "no config file and no preset claculator; did you mean calculator?",
    )
    assert_error(
        sspo("train", "-c", "mine.yaml", "--dry-run"), "config file mine.yaml cannot be read: No such file or directory"
    )


def write_killed_run(folder: Path) -> None:
    """Write a run of 100 steps that was killed at step 12.

    A step takes 2 s, a checkpoint 1 s, and the evaluation at step 10 took 30 s.
    """
    with RunFolder.create(folder, load_config([], ["steps=100", "evaluation.every=10"]), []):
        pass
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timed_rows(12)))


def timed_rows(steps: int) -> list[dict]:
    rows, elapsed = [], 0.0
    for step in range(1, steps + 1):
        elapsed += 2.0
        rows.append({"step": step, "time/step": 2.0, "time/elapsed": elapsed})
        elapsed += 30.0 if step % 10 == 0 else 0.0
    return rows


def test_runs_are_listed_and_damaged_ones_do_not_break_it(tmp_path):
    write_run(tmp_path / "done", "steps=12", evaluations=[evaluation(12, 50, n=100)])
    write_killed_run(tmp_path / "a-sweep" / "killed")
    for name in ("no-config", "bad-status", "bad-metrics"):
        shutil.copytree(tmp_path / "a-sweep" / "killed", tmp_path / name)
    (tmp_path / "no-config" / "config.json").unlink()
    (tmp_path / "bad-status" / "status.json").write_text("{")
    (tmp_path / "bad-metrics" / "metrics.jsonl").write_text("[]\n")
    (tmp_path / "notes.txt").write_text("no run")
    done = sspo("ls", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert " ".join(rows["done"].split()) == "done finished 12/12 arithmetic 50.0 % at step 12"
    assert " ".join(rows["a-sweep/killed"].split()) == "a-sweep/killed killed 12/100"
    for name, said in (("no-config", "config.json"), ("bad-status", "is not valid JSON"), ("bad-metrics", "line 1")):
        assert "damaged: " in rows[name]
        assert said in rows[name]
    assert_error(sspo("ls", tmp_path / "nowhere"), "there is no folder")
    (tmp_path / "empty").mkdir()
    assert_error(sspo("ls", tmp_path / "empty"), "there are no runs in")


def test_a_run_in_progress_has_a_time_left(tmp_path):
    write_killed_run(tmp_path / "runs" / "alive")
    with RunFolder.resume(tmp_path / "runs" / "alive"):
        line = sspo("ls", tmp_path / "runs").stdout.rstrip().splitlines()[-1]
    assert line.split() == ["alive", "running", "12/100", "0:07:26"]  # 88 steps of 2 s, 9 evaluations of 30 s


def test_the_time_left_counts_the_evaluations_to_come():
    assert [evaluations_left(step, 100, 10) for step in (0, 9, 10, 89, 90, 99, 100)] == [10, 10, 9, 2, 1, 1, 0]
    assert [evaluations_left(step, 95, 10) for step in (0, 90, 95)] == [10, 1, 0]
    assert [evaluations_left(step, 5, None) for step in (0, 5)] == [1, 0]
    assert time_left_of(timed_rows(5), 100, 10) == 95 * 2.0  # no evaluation was timed yet
    assert time_left_of(timed_rows(20)[12:], 100, 10) == pytest.approx(80 * 2.0)
    assert time_left_of(timed_rows(21), 100, 10) == pytest.approx(79 * 2.0 + 8 * 30.0)
    assert time_left_of([], 100, 10) is None


def test_defaults_of_a_named_model_are_not_those_of_the_embedded_task():
    embedded, named = RunOptions(), load_config([], ["model.name=X"])
    assert (named.prompt, named.rollout.max_new_tokens, named.cold_start.steps) == ("think-answer", 512, 0)
    assert (named.optimizer.learning_rate, named.optimizer.schedule) == (1e-6, "constant")
    assert [task.name for task in (*named.tasks, *named.evaluation.benchmarks)] == ["gsm8k", "gsm8k"]
    assert [task.split for task in (*named.tasks, *named.evaluation.benchmarks)] == ["train", "test"]
    assert load_config([], ["model.name=null"]) == embedded
    assert load_config([], ["model={name: X, lora: {}}"]).optimizer.learning_rate == 1e-5
    given = ["prompt=plain", "cold_start.steps=3", "rollout={max_new_tokens: 9}", "optimizer.learning_rate=0.5"]
    kept = load_config([], ["model.name=X", "tasks=[mine.jsonl]", *given])
    assert (kept.prompt, kept.cold_start.steps, kept.rollout.max_new_tokens) == ("plain", 3, 9)
    assert (kept.optimizer.learning_rate, kept.evaluation.benchmarks) == (0.5, [])
    assert (
        load_config([], ["model.name=X", "tasks=[gsm8k=data/gsm8k, calculator]"]).evaluation.benchmarks[0].name
        == "calculator"
    )
