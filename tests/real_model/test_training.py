"""A real model is taught, trained, killed, resumed and measured: SmolLM2-135M-Instruct (Q4_1, dequantized)."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import sspo
from small_runs import AFTER_STEP, KILLED, rows

from sspo_cli import session
from sspo_cli.evaluation import command

MEASURED = {"model__dtype": "float32", "chat__system": "Add.", "rollout__max_new_tokens": 16}
TRAINED = {
    **MEASURED,
    "rollout__prompts": 1,
    "rollout__group_size": 4,
    "learning__mu": 1,
    "steps": 4,
    "optimizer__learning_rate": 1e-5,
    "optimizer__warmup_steps": 0,
    "cold_start__steps": 8,
    "cold_start__batch_size": 2,
    "cold_start__learning_rate": 1e-4,
    "cold_start__warmup_steps": 2,
    "checkpoint__every": 2,
    "checkpoint__keep": 1,
}


@pytest.fixture(scope="module", autouse=True)
def unchecked() -> Iterator[None]:
    """Disable the check of the model in every command, because `test_smollm2.py` makes the same comparison once."""
    with pytest.MonkeyPatch.context() as patch:
        for room in (session, command):
            patch.setattr(room, "check_model", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    """A folder with sums to learn from and other sums to ask; a quarter of the demonstrations lacks the reasoning's tags."""
    folder = tmp_path_factory.mktemp("sums")
    made = []
    for number in range(52):
        a, b = 3 + number % 7, 2 + number // 7
        thoughts = f"{a + b}" if number % 4 == 0 else f"<think>{a + b}</think>"
        demonstration = f"{thoughts}<answer>{a + b}</answer>"
        made.append({"question": f"{a}+{b}?", "answer": str(a + b), "demonstration": demonstration})
    for name, part in (("taught", made[:48]), ("asked", made[48:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def arguments(runs: Path, name: str, model: Path, sums: Path, **options: object) -> list[str]:
    given = {"model__name": model, "tasks": f"[{sums / 'taught.jsonl'}]", "evaluation__benchmarks": "[]"}
    trained = {
        key: value for key, value in TRAINED.items() if options.get("cold_start__steps") != 0 or "cold_" not in key
    }
    sets = [f"{key.replace('__', '.')}={value}" for key, value in {**trained, **given, **options}.items()]
    return ["train", "--runs-dir", str(runs), "--run", name, *(part for each in sets for part in ("-s", each))]


@pytest.fixture(scope="module")
def taught(model_folder, sums, tmp_path_factory) -> Path:
    """A folder of runs that holds `whole`, a weak cold start and four steps of RL, measured on the sums to ask."""
    runs = tmp_path_factory.mktemp("runs")
    done = sspo(*arguments(runs, "whole", model_folder, sums, evaluation__benchmarks=f"[{sums / 'asked.jsonl'}]"))
    assert done.returncode == 0, done.stdout + done.stderr
    return runs


@pytest.fixture(scope="module")
def untaught(taught, model_folder, sums) -> Path:
    """The folder of the untrained model, measured in the same way."""
    done = sspo("eval", model_folder, "--runs-dir", taught, "-b", sums / "asked.jsonl", **MEASURED)
    assert done.returncode == 0, done.stderr
    (folder,) = taught.glob("model-*")
    return folder


def formats(folder: Path) -> list[float]:
    return [row["format"] for row in json.loads((folder / "eval" / "summary.json").read_text())]


def test_a_weak_cold_start_and_a_few_steps_of_rl_raise_the_format_reward(taught, untaught):
    (before,) = formats(untaught)
    after_cold_start, after_rl = formats(taught / "whole")
    assert before <= 0.1
    assert before < after_cold_start <= after_rl
    metrics = rows(taught / "whole" / "metrics.jsonl")
    assert len(metrics) == TRAINED["steps"]
    assert all(row["sampler/mismatch_max"] <= 1e-4 for row in metrics)
    assert all(row["ratio/log_std"] <= 1e-4 for row in metrics)  # one step per rollout is on-policy


def test_the_untrained_model_writes_no_tags_and_its_answers_are_read_from_recorded_outputs(untaught, tmp_path):
    answers = rows(untaught / "eval" / "asked.jsonl")
    assert not any(row["correct"] for row in answers if "<answer>" not in row["completion"])
    recorded = tmp_path / "outputs.jsonl"
    recorded.write_text("".join(json.dumps({"gold": r["gold"], "completion": r["completion"]}) + "\n" for r in answers))
    done = sspo("eval", "--completions", recorded)
    assert done.returncode == 0, done.stderr
    graded = rows(tmp_path / "outputs.graded.jsonl")
    assert sum(row["extracted"] is not None for row in graded) > len(graded) / 2


@pytest.mark.long
def test_adapters_are_trained_saved_and_measured(taught, model_folder, sums):
    options = {"steps": 1, "cold_start__steps": 0, "model__lora": "{rank: 4}", "checkpoint__every": 1}
    done = sspo(*arguments(taught, "lora", model_folder, sums, **options))
    assert done.returncode == 0, done.stdout + done.stderr
    (step,) = rows(taught / "lora" / "metrics.jsonl")
    assert step["sampler/mismatch_max"] <= 1e-4
    assert (taught / "lora" / "checkpoints" / "step-1" / "adapter_model.safetensors").is_file()
    done = sspo("eval", "lora", "--runs-dir", taught, "-b", sums / "asked.jsonl", "--limit", 2)
    assert done.returncode == 0, done.stderr
    assert "% truncated" in done.stdout


@pytest.mark.long
def test_a_run_that_was_killed_ends_to_the_bit_as_one_left_alone(taught, model_folder, sums):
    code = KILLED.format(**AFTER_STEP, countdown=3)  # its last checkpoint is that of step 2
    command = [sys.executable, "-c", code, *arguments(taught, "killed", model_folder, sums)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = sspo("train", "--runs-dir", taught, "--run", "killed", "--resume")
    assert done.returncode == 0, done.stderr
    weights = [(taught / name / "checkpoints" / "step-4" / "model.safetensors") for name in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
