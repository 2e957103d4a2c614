"""Mistakes of a user give one clear sentence and a non-zero exit, and leave nothing half-written."""

import errno
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Outcome, assert_error, sspo
from transformers import AutoModelForCausalLM

from sspo_cli.config import TinyModelOptions
from sspo_cli.objectives import Objective
from sspo_cli.policy.checkpoint import is_whole
from sspo_cli.policy.model import Policy
from sspo_cli.policy.tiny import tiny_model, tiny_tokenizer
from sspo_cli.tracking.tracker import Tracker

QUICK = {
    "steps": 6,
    "model.tiny.hidden_size": 32,
    "model.tiny.heads": 1,
    "model.tiny.layers": 1,
    "rollout.prompts": 4,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 16,
    "cold_start.steps": 0,
    "tasks": "[{name: arithmetic, limit: 50}]",
    "evaluation.benchmarks": "[]",
}


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return a function that runs `sspo train --run bad` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    quick = {key.replace(".", "__"): value for key, value in QUICK.items()}

    def train(*arguments: object, **options: object) -> Outcome:
        values = {**quick, **options}
        if "model__name" in options:  # a named model has its own size
            values = {key: value for key, value in values.items() if not key.startswith("model__tiny")}
        return sspo("train", "--runs-dir", ".", "--run", "bad", *arguments, **values)

    return train


def break_weights(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    """Make the weights NaN at the micro-batches, counted from 1 and one a step here, for which `when` holds."""
    weights, calls = Objective.weights, 0

    def broken(self, log_ratio, advantages, mask):
        nonlocal calls
        calls += log_ratio.grad_fn is not None  # the calls of the diagnostics have no gradient
        return weights(self, log_ratio, advantages, mask) * (float("nan") if when(calls) else 1.0)

    monkeypatch.setattr(Objective, "weights", broken)


def test_bad_steps_are_skipped_counted_and_at_last_stop_the_run_at_its_last_good_checkpoint(
    train, tmp_path, monkeypatch
):
    break_weights(monkeypatch, lambda call: call >= 3)
    done = train(optimizer__max_bad_steps=2, checkpoint__every=1, checkpoint__keep=1)
    assert_error(
        done, "was not finite in 2 consecutive steps, at step 4; the last good checkpoint is bad/checkpoints/step-2;"
    )
    command = "sspo train --from bad/checkpoints/step-2 -s optimizer.learning_rate=0.0001 --runs-dir ."
    assert f"`{command}` starts a new run from this checkpoint with half the learning rate" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert [row["policy/skipped"] for row in rows] == [0, 0, 1, 2]
    assert json.loads((tmp_path / "bad" / "status.json").read_text())["state"] == "failed"
    assert [path.name for path in (tmp_path / "bad" / "checkpoints").glob("step-*")] == ["step-2"]


@pytest.mark.parametrize("last", [False, True], ids=["at a step between", "at the last step"])
def test_weights_that_are_not_finite_push_no_good_checkpoint_out(train, tmp_path, monkeypatch, last):
    """The step whose update overflows the weights has a finite loss and gradient."""
    step, steps = torch.optim.AdamW.step, 0

    def overflow(self, *args, **kwargs):
        nonlocal steps
        steps += 1
        step(self, *args, **kwargs)
        if steps == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][-1][0, 0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    done = train(steps=4 if last else 6, checkpoint__every=1, checkpoint__keep=1)
    said = "the weights are not finite, so bad/checkpoints/step-4 is not written; the last good checkpoint is"
    assert_error(done, f"{said} bad/checkpoints/step-3")
    assert [path.name for path in (tmp_path / "bad" / "checkpoints").glob("step-*")] == ["step-3"]
    assert is_whole(tmp_path / "bad" / "checkpoints" / "step-3")


def test_a_bad_last_step_is_saved_next_to_the_last_good_one(train, tmp_path, monkeypatch):
    break_weights(monkeypatch, lambda call: call >= 5)
    assert train(checkpoint__every=1, checkpoint__keep=1).returncode == 0  # steps 5 and 6 are bad
    assert sorted(path.name for path in (tmp_path / "bad" / "checkpoints").glob("step-*")) == ["step-4", "step-6"]


def test_bad_steps_between_good_ones_are_skipped_and_stop_nothing(train, tmp_path, monkeypatch):
    break_weights(monkeypatch, lambda call: call % 2 == 0)
    done = train(optimizer__max_bad_steps=2)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert [row["policy/skipped"] for row in rows] == [0, 1, 1, 2, 2, 3]


def test_bad_steps_before_and_after_a_stop_are_in_a_row(train, tmp_path, monkeypatch):
    log = Tracker.log
    monkeypatch.setattr(Tracker, "log", lambda *args: (log(*args), signal.raise_signal(signal.SIGINT)))
    break_weights(monkeypatch, lambda call: True)
    assert train(optimizer__max_bad_steps=2).returncode == 130
    assert_error(train("--resume", optimizer__max_bad_steps=2), "was not finite in 2 consecutive steps, at step 2")


@pytest.mark.parametrize(("bad", "said"), [({2, 4}, None), ({2, 3}, "in 2 consecutive steps, at step 3")])
def test_bad_steps_of_the_cold_start_count_in_a_row_too(train, monkeypatch, bad, said):
    logprobs, calls = Policy.logprobs, 0

    def broken(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        logprobs_now, entropy = logprobs(self, *args, **kwargs)
        return logprobs_now * (float("nan") if calls in bad else 1.0), entropy

    monkeypatch.setattr("sspo_cli.session.check_model", lambda *_, **__: None)  # the check would notice
    monkeypatch.setattr(Policy, "logprobs", broken)
    done = train(steps=1, cold_start__steps=4, optimizer__max_bad_steps=2)
    if said:
        assert_error(done, said)
    else:
        assert done.returncode == 0, done.stderr


def test_one_bad_step_changes_no_weight_and_does_not_stop_the_run(train, tmp_path, monkeypatch):
    break_weights(monkeypatch, lambda call: call == 1)
    done = train(steps=1, optimizer__max_bad_steps=2)
    assert done.returncode == 0, done.stderr
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "bad" / "checkpoints" / "step-1")
    before = tiny_model(TinyModelOptions(hidden_size=32, heads=1, layers=1), tiny_tokenizer())
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert (a == b).all(), name


def test_a_prompt_template_or_a_method_that_does_not_exist(train, tmp_path):
    assert_error(train(prompt="think-anser"), "think-answer")
    assert_error(train("--method", "gspo", objective__tau_pos=1), "method gspo has no option tau_pos")


def test_a_gate_that_breaks_the_paper_s_conditions_is_refused_before_the_run(train, tmp_path):
    (tmp_path / "mygate.py").write_text("def linear(log_ratio, tau):\n    return log_ratio\n")
    done = train("--gate", "mygate:linear")
    assert_error(done, "condition (iii)")
    assert "ρ = " in done.stderr
    assert not (tmp_path / "bad").exists()
    assert train("--gate", "mygate:linear", "--allow-any-gate", steps=1).returncode == 0


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (['{"question": "1+1", "answer": "2"}', '{"question": "1+2"}'], "line 2"),
        (['{"question": "1+1", "answer": "2"}', '{"question": "1+2", "ans'], "line 2"),
    ],
)
def test_a_bad_row_is_reported_by_file_and_number(train, tmp_path, rows, said):
    (tmp_path / "mine.jsonl").write_text("\n".join(rows) + "\n")
    done = train(tasks=f"[{{name: file, path: {tmp_path / 'mine.jsonl'}}}]")
    assert_error(done, said)
    assert "mine.jsonl" in done.stderr


def test_a_gold_answer_that_no_answer_can_match_stops_before_the_run(train, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"question": "1+1", "answer": "</answer>"}\n')
    done = train(tasks=f"[{{name: file, path: {tmp_path / 'mine.jsonl'}}}]")
    assert_error(done, "mine.jsonl, line 1: no answer can match `answer` = '</answer>', which holds a tag")


def test_a_gold_whose_other_spelling_is_not_right_stops_before_the_run(train, tmp_path, monkeypatch):
    monkeypatch.setattr("sspo_cli.preflight.respell", lambda gold: "3")
    assert_error(train(), "is not recognized as equal to '3', so probably no answer can match it")


def test_a_cold_start_without_demonstrations(train, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    done = train(tasks=f"[{{name: file, path: {tmp_path / 'mine.jsonl'}}}]", cold_start__steps=5)
    assert_error(done, "no worked demonstrations")


def test_a_disk_without_room_for_the_checkpoint(train, tmp_path, monkeypatch):
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    assert_error(train(steps=1), "step-1 cannot be written: [Errno 28] No space left on device")
    assert not list((tmp_path / "bad" / "checkpoints").iterdir())
    assert json.loads((tmp_path / "bad" / "status.json").read_text())["state"] == "failed"


def test_a_run_that_failed_before_its_first_step_does_not_keep_its_name(train):
    assert_error(train(model__name="nowhere"), "model.name = nowhere cannot be loaded")
    assert train(steps=1).returncode == 0
    assert_error(train(steps=1), "run bad exists; choose another --run or add --resume")


def test_a_run_that_was_killed_while_its_folder_was_created_does_not_keep_its_name(train, tmp_path):
    assert train(steps=1).returncode == 0
    (folder,) = (path.parent for path in tmp_path.rglob("config.json") if path.parent.name == "bad")
    config = (folder / "config.json").read_text()
    for text in (config, '{"model_type": "qwen2"}'):  # the second is the config of a model
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "config.json").write_text(text)
        done = train(steps=1)
        if text == config:
            assert done.returncode == 0, done.stderr
        else:
            assert_error(done, "run bad exists; choose another --run or add --resume")
            assert (folder / "config.json").read_text() == text


def test_a_problem_that_does_not_fit_into_the_context(train, tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "1+" * 600, "answer": "2"}) + "\n")
    done = train(tasks=f"[{{name: file, path: {tmp_path / 'mine.jsonl'}}}]")
    assert_error(done, "needs 1224 tokens, 1208 for its prompt")
