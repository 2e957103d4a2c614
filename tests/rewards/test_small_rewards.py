"""Tests of rewards on invented gold answers and outputs in published layouts; test_shared_rewards has the real ones."""

import json
from pathlib import Path

import pytest

from sspo_cli.evaluation.recorded import grade_file
from sspo_cli.rewards import AnswerChecker, grade
from sspo_cli.tasks import load_problems


def golds_of(benchmark: str, data: Path) -> list[str]:
    return [problem.answer for problem in load_problems(benchmark, path=str(data / benchmark), split="test")]


def completion(answer: str) -> str:
    return f"<think>Let me see.</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize("benchmark", ["gsm8k", "math500", "aime24"])
def test_every_gold_answer_earns_the_full_reward_and_its_neighbour_none(
    checker: AnswerChecker, small_data: Path, benchmark: str
) -> None:
    golds = golds_of(benchmark, small_data)
    rewards = grade([completion(rf"\boxed{{{gold}}}") for gold in golds], golds, checker)
    assert [reward.total for reward in rewards] == [2.0] * len(golds)
    rewards = grade([completion(gold) for gold in golds[1:] + golds[:1]], golds, checker)
    assert [(reward.answer, reward.format) for reward in rewards] == [(0.0, 1.0)] * len(golds)


def test_raw_aime25_answers_agree_with_the_tidied_ones(checker: AnswerChecker, small_data: Path) -> None:
    raw, tidy = (
        [p.answer for p in load_problems("aime25", path=str(small_data / "aime25" / name), split="test")]
        for name in ("opencompass.jsonl", "test.jsonl")
    )
    assert raw == ["588", r"144^\circ", "16", "70"]
    assert tidy == ["588", "144", "16", "70"]
    assert all(verdict.equal for verdict in checker.check(list(zip(tidy, raw, strict=True))))


@pytest.mark.parametrize("name", ["gsm8k_example_solutions", "math_verify_cases", "peer_reward_cases"])
def test_recorded_rows_keep_their_fields_and_get_the_known_verdict(small_data: Path, tmp_path: Path, name: str) -> None:
    recorded = small_data / "outputs" / f"{name}.jsonl"
    grade_file(recorded, tmp_path / "graded.jsonl", timeout=20.0)
    rows, graded = (
        [json.loads(line) for line in path.open(encoding="utf-8")] for path in (recorded, tmp_path / "graded.jsonl")
    )
    assert [{key: row[key] for key in before} for before, row in zip(rows, graded, strict=True)] == rows
    expected = [row.get("expected", row.get("correct")) for row in rows]
    assert [row["r_answer"] for row in graded] == [float(verdict or 0) for verdict in expected]
    statuses = ["no gold" if verdict is None else "ok" for verdict in expected]
    assert [row["status"] for row in graded] == statuses
