"""Tests of the weights of the reward's parts, and of user-defined functions in the answer-check workers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import assert_error, sspo
from small_runs import rows

from sspo_cli.config import load_config
from sspo_cli.errors import UserError
from sspo_cli.rewards import PAPER, AnswerChecker, Scoring, grade
from sspo_cli.types import Reward

OWN = """
import os, time
def length(text, gold):
    return len(text) / 100
def gold_length(text, gold):
    return len(gold)
def broken(text, gold):
    return 1 / 0 if "zero" in text else 0.5
def words(text, gold):
    return text
def hangs(text, gold):
    while "hang" in text:
        pass
    if "die" in text:
        os._exit(3)
    return 0.5
class Odd(Exception):
    def __init__(self, a, b): ...
def odd(text, gold):
    raise Odd(1, 2)
def leaves(text, gold):
    raise SystemExit(3)
"""
GOLDS = ["7", "12"]
TEXTS = ["<think>a</think><answer>7</answer>", "<think>a</think> <answer>3</answer>."]  # rewards 1 + 1 and 0 + 0.25


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnswerChecker]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_scores.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch, AnswerChecker(workers=1, timeout=0.5) as checker:
        patch.chdir(folder)
        patch.setattr("sspo_cli.rewards.answer.WALL_CLOCK", 60.0)
        yield checker
    sys.modules.pop("own_scores", None)


def totals(scoring: Scoring, checker: AnswerChecker, texts: list[str] = TEXTS) -> list[float]:
    return [reward.total for reward in complete(scoring, checker, texts)]


def complete(scoring: Scoring, checker: AnswerChecker, texts: list[str] = TEXTS) -> list[Reward]:
    golds = GOLDS[: len(texts)]
    return scoring.complete(grade(texts, golds, checker), texts, golds, checker)


def test_the_paper_s_reward_is_the_sum(checker):
    assert totals(PAPER, checker) == [2.0, 0.25]
    assert PAPER.highest == 2.0


def test_weights_of_answer_and_format(checker):
    assert totals(Scoring(answer=3.0, format=0.5), checker) == [3.5, 0.125]
    assert totals(Scoring(answer=0.0), checker) == [1.0, 0.25]


def test_a_function_of_one_s_own_gets_text_and_gold(checker):
    scoring = Scoring(format=0.0, function="own_scores:length", weight=10.0)
    assert totals(scoring, checker) == pytest.approx([1 + 10 * 0.34, 10 * 0.36])
    assert scoring.highest == 11.0
    scoring = Scoring(0.0, 0.0, "own_scores:gold_length", low=-5, high=5)
    assert totals(scoring, checker) == [1.0, 2.0]


def test_what_does_not_end_counts_as_the_lowest_value(checker):
    scoring = Scoring(0.0, 0.0, "own_scores:hangs", low=-2.0)
    rewards = complete(scoring, checker, ["hang", "fine"])
    assert [(reward.own, reward.status) for reward in rewards] == [(-2.0, "timeout"), (0.5, "no answer")]
    assert [(reward.own, reward.status) for reward in complete(scoring, checker, ["die"])] == [(-2.0, "error")]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("own_scores:broken", "own_scores:broken fails for the completion 'zero': ZeroDivisionError: division by zero"),
        ("own_scores:odd", "own_scores:odd fails for the completion 'zero': Odd"),
        ("own_scores:leaves", "own_scores:leaves fails for the completion 'zero': SystemExit: 3"),
        ("own_scores:words", "own_scores:words fails .* it returns 'zero', which is no number"),
        ("own_scores:absent", "own_scores:absent fails .* has no function absent"),
        ("own_scores:gold_length", r"own_scores:gold_length gives 1 .* not in reward.range = \[0, 0.5\]"),
    ],
)
def test_a_function_that_fails_or_leaves_its_range_stops_the_run(checker, function, said):
    with pytest.raises(UserError, match=said):
        complete(Scoring(function=function, high=0.5), checker, ["zero"])


def test_the_import_of_a_large_module_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    busy = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end:\n    pass\n"
    (tmp_path / "own_large.py").write_text(f"{busy}def half(text, gold):\n    return 0.5\n")
    with AnswerChecker(workers=1, timeout=0.2) as checker:
        assert totals(Scoring(0.0, 0.0, "own_large:half"), checker, ["any"]) == [0.5]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward={answer: 0, format: 0}"], "leave nothing to learn"),
        (["reward.range=[0, 2]"], "reward.weight and reward.range apply to reward.function"),
        (["reward={function: 'a:b', range: [1, 1]}"], "reward.range = .* is empty"),
        (["reward.function=''"], "`reward.function` = ''"),
        (["reward.answer=-1"], "`reward.answer` = -1"),
        (["reward={function: 'a:b', weight: 0}"], "`reward.weight` = 0"),
    ],
)
def test_options_that_make_no_reward_are_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        load_config(overrides=overrides)


def test_a_run_learns_from_it_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_lengths.py").write_text(
        "def brief(text, gold):\n    return -min(len(text), 200) / 200\n"
        "def endless(text, gold):\n    while True:\n        pass\n"
    )
    small = {
        "steps": 1,
        "cold_start__steps": 0,
        "model__tiny__hidden_size": 32,
        "model__tiny__heads": 1,
        "model__tiny__layers": 1,
        "rollout__prompts": 2,
        "rollout__group_size": 2,
        "rollout__max_new_tokens": 8,
        "learning__mu": 1,
        "evaluation__benchmarks": "[]",
        "tasks": "[{limit: 9}]",
    }
    own = {"reward__function": "own_lengths:brief", "reward__range": "[-1, 0]", "reward__weight": 2}
    run = ("train", "--runs-dir", ".", "--run")
    assert_error(sspo(*run, "bad", **small, reward__function="own_lengths:long"), "own_lengths.py has no function long")
    assert not (tmp_path / "bad").exists()
    assert_error(sspo(*run, "bad", **small, reward__function="own_lengths:brief"), "not in reward.range = [0, 1]")
    endless = {"reward__function": "own_lengths:endless", "answer_timeout": 0.2}
    assert_error(sspo(*run, "bad", **small, **endless), "own_lengths:endless has not ended after 0.2 s")
    done = sspo(*run, "good", **small, **own, reward__format=0.5)
    assert done.returncode == 0, done.stderr
    assert "rewards of synthetic completions, of at most 1.5: perfect 1." in done.stdout + done.stderr
    assert ", own -" in done.stdout
    (metrics,) = rows(tmp_path / "good" / "metrics.jsonl")
    kept = rows(tmp_path / "good" / "completions.jsonl")
    assert kept
    assert all(row["r_own"] == -len(row["completion"]) / 200 for row in kept)
    parts = metrics["reward/answer"] + 0.5 * metrics["reward/format"] + 2 * metrics["reward/own"]
    assert metrics["reward/mean"] == pytest.approx(parts)
    assert metrics["reward/own"] < 0
    sys.modules.pop("own_lengths", None)
