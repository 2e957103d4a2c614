"""A run that learns nothing warns and stops; an evaluation that measures something other than answers warns."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import assert_error, sspo

from sspo_cli.config import RunOptions, load_config
from sspo_cli.objectives import group_advantages
from sspo_cli.policy.batch import collate
from sspo_cli.run import dead
from sspo_cli.run.dead import check_learning
from sspo_cli.run.state import RunState
from sspo_cli.tracking.dead import MOST_ALIKE, Sampled, evaluation_signs, reasons
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

# Without a cold start no answer is right. The format is not rewarded, because a random text may begin with it.
DEAD = {
    "steps": 26,
    "model__tiny": "{hidden_size: 16, layers: 1, heads: 1, intermediate_size: 16}",
    "rollout__prompts": 4,
    "rollout__group_size": 2,
    "rollout__max_new_tokens": 6,
    "reward__format": 0,
    "cold_start__steps": 0,
    "tasks": "[{name: arithmetic, limit: 50}]",
    "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 5}]",
}
ONE = Sampled(count=8, untagged=0, truncated=0, unformed=0, right=3, timeouts=0, alike=0, masked=0, episodes=0)


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def test_a_run_without_any_gradient_warns_stops_with_its_state_saved_and_keeps_going_if_asked_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = sspo("train", "--runs-dir", ".", "--run", "dead", **DEAD)
    assert_error(done, f"nothing is learned: in {MOST_ALIKE} rollout batches no group has had rewards that differ; ")
    reason = "no answer in tags: 8 of 8; a cold start (cold_start.steps) teaches the format"
    assert reason in done.stderr
    assert "`sspo train --resume --run dead --keep-going` continues" in done.stderr
    (warning,) = [line for line in done.stdout.splitlines() if "has rewards that differ" in line]
    assert "health: no group of rollout batch 1 has rewards that differ, so nothing is learned from it: " in warning
    assert "health: arithmetic: no answer in tags: 5 of 5; the model does not follow the format" in done.stdout
    assert (status(tmp_path / "dead")["state"], status(tmp_path / "dead")["step"]) == ("failed", 2 * (MOST_ALIKE - 1))
    assert (tmp_path / "dead" / "checkpoints" / f"step-{2 * (MOST_ALIKE - 1)}").is_dir()
    again = sspo("train", "--runs-dir", ".", "--run", "dead", "--resume")
    assert_error(again, f"nothing is learned: in {MOST_ALIKE + 1} rollout batches")
    going = sspo("train", "--runs-dir", ".", "--run", "dead", "--resume", "--keep-going")
    assert going.returncode == 0, going.stderr
    assert status(tmp_path / "dead")["state"] == "finished"
    log = (tmp_path / "dead" / "console.log").read_text()
    assert log.count("nothing is learned: in ") == 2
    assert set(going.stdout.splitlines()) <= set(log.splitlines())  # the log has the lines of the console


def sample(rewards: list[list[float]], options: RunOptions, state: RunState, notes: list[str]) -> None:
    """Call `check_learning` on a rollout batch of groups with these answer rewards."""
    groups = [
        Group(
            Prompt(Problem(str(number), "", "1", "test"), "", [5]),
            [Completion([6, place], [0.0, 0.0], "<answer>1</answer>", truncated=False) for place in range(len(group))],
            [Reward(answer, 0.5, "1", "ok") for answer in group],
        )
        for number, group in enumerate(rewards)
    ]
    state.batch = collate(groups, group_advantages(torch.tensor(rewards) + 0.5), mask_truncated=False)
    run = SimpleNamespace(
        options=options,
        state=state,
        keep_going=False,
        tracker=SimpleNamespace(note=notes.append),
        folder=SimpleNamespace(resume_command=["sspo", "train"]),
    )
    check_learning(run, groups)


def test_a_run_that_has_learned_before_only_warns(monkeypatch):
    monkeypatch.setattr(dead, "save", lambda run: pytest.fail("a run that may be done is stopped"))
    state, notes, options = RunState(), [], RunOptions()
    sample([[1.0, 0.0], [1.0, 1.0]], options, state, notes)
    for _ in range(MOST_ALIKE + 5):
        sample([[1.0, 1.0], [1.0, 1.0]], options, state, notes)
    (note,) = notes
    assert note == (
        f"health: no group of the last {MOST_ALIKE} rollout batches has rewards that differ, so nothing is learned; the run "
        "learned before and may be done: every answer is right; use harder tasks"
    )
    sample([[1.0, 0.0], [1.0, 1.0]], options, state, notes)
    assert (state.learned, state.alike) == (True, 0)


@pytest.mark.parametrize(
    ("changes", "asks", "said"),
    [
        ({"truncated": 8}, True, ["all 8 completions are truncated at 64 tokens; raise rollout.max_new_tokens"]),
        (
            {"untagged": 8, "right": 0},
            False,
            ["no answer in tags: 8 of 8; the template `t` does not ask for tags; use prompt=think-answer"],
        ),
        (
            {"untagged": 8, "right": 0},
            True,
            ["no answer in tags: 8 of 8; a cold start (cold_start.steps) teaches the format"],
        ),
        (
            {"untagged": 8, "episodes": 8, "right": 0},
            False,
            ["no episode proposes a solution: 8 of 8; a cold start (cold_start.steps) teaches the actions"],
        ),
        (
            {"unformed": 8},
            True,
            ["the format reward is 0 everywhere: 8 of 8; a cold start (cold_start.steps) teaches the format"],
        ),
        ({"right": 0}, True, ["no answer is right; use easier tasks or a stronger model, or check the gold answers"]),
        ({"right": 8}, True, ["every answer is right; use harder tasks"]),
        (
            {"right": 8, "alike": 8},
            True,
            [
                "every answer is right; use harder tasks",
                "the completions of each group are the same text; raise rollout.temperature",
            ],
        ),
        ({"timeouts": 8, "right": 0}, True, ["all 8 answer checks ran out of time; raise answer_timeout"]),
        (
            {"masked": 8},
            True,
            ["all completions are truncated, so learning.mask_truncated excludes all of them from the loss"],
        ),
        ({}, True, ["use easier or harder tasks, or a larger rollout.group_size"]),
    ],
)
def test_the_likely_reasons(changes, asks, said):
    assert reasons(replace(ONE, **changes), None if asks else "t", 64) == said


def answer(**changes: object) -> dict:
    return {"extracted": "1", "finish": "stop", "status": "ok", "max_new_tokens": 64, **changes}


@pytest.mark.parametrize(
    ("changes", "count", "said"),
    [
        (
            {"extracted": None},
            60,
            "no answer in tags: 60 of 60; the template `plain` does not ask for tags; use prompt=think-answer",
        ),
        ({"extracted": None}, 31, "no answer in tags: 31 of 60; the template `plain`"),
        ({"extracted": None}, 30, None),
        (
            {"finish": "length"},
            31,
            "truncated at the limit of 64 tokens: 31 of 60 answers; raise evaluation.max_new_tokens or",
        ),
        ({"finish": "length"}, 30, None),
        ({"status": "timeout"}, 31, "answer checks that ran out of time: 31 of 60; raise answer_timeout"),
        ({"extracted": None, "outcome": {}}, 60, None),  # episodes have no tags
    ],
)
def test_signs_of_an_evaluation(changes, count, said):
    rows = [answer(**changes) if place < count else answer() for place in range(60)]
    signs = evaluation_signs(rows, "plain")
    assert len(signs) == (said is not None)
    assert all(sign.startswith(str(said)) for sign in signs)


def test_another_template_is_advised_only_where_one_would_help():
    def silent(*overrides: str) -> str | None:
        return load_config([], overrides).silent_template

    assert silent("model.name=org/name", "prompt=plain") == "plain"
    assert silent("model.name=org/name", "prompt=think-answer") is None
    assert silent("model.name=org/name", "prompt=plain", "chat.system=put it in <answer> tags") is None
    assert silent("prompt=plain") is None  # the embedded model reads no instructions
