"""Tests of rewards on published gold answers and on published outputs of real models."""

import json

import pytest
from shared_data import published

from sspo_cli.evaluation.recorded import grade_file
from sspo_cli.rewards import grade
from sspo_cli.tasks import load_problems

BENCHMARKS = ["gsm8k", "math500", "aime24", "aime25"]
# Neighbours whose answers differ only in writing.
SAME_VALUE = {("5", "x=5")}


def golds_of(benchmark: str) -> list[str]:
    return [
        problem.answer
        for problem in load_problems(benchmark, path=str(published(f"{benchmark}/test.jsonl").parent), split="test")
    ]


def completion(answer: str) -> str:
    return f"<think>Let me see.</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("form", ["{}", r"\boxed{{{}}}", r"The answer is $\boxed{{{}}}$."])
def test_every_gold_answer_earns_the_full_reward(checker, benchmark, form):
    golds = golds_of(benchmark)
    rewards = grade([completion(form.format(gold)) for gold in golds], golds, checker)
    assert [gold for gold, reward in zip(golds, rewards, strict=True) if reward.total != 2.0] == []


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_next_different_gold_answer_earns_nothing(checker, benchmark):
    golds = golds_of(benchmark)
    others = [next(o for o in golds[i + 1 :] + golds[:i] if o != gold) for i, gold in enumerate(golds)]
    rewards = grade([completion(other) for other in others], golds, checker)
    taken = {(g, o) for g, o, reward in zip(golds, others, rewards, strict=True) if reward.answer != 0.0}
    assert taken <= SAME_VALUE
    assert {reward.status for reward in rewards} == {"ok"}


def test_raw_aime25_answers_agree_with_the_tidied_ones(checker):
    raw, tidy = (
        [p.answer for p in load_problems("aime25", path=str(published(f"aime25/{name}")), split="test")]
        for name in ("opencompass.jsonl", "test.jsonl")
    )
    assert any("circ" in answer for answer in raw)
    assert all(verdict.equal for verdict in checker.check(list(zip(tidy, raw, strict=True))))


def test_judgement_of_published_gsm8k_solutions(checker):
    rows = [json.loads(line) for line in published("outputs/gsm8k_example_solutions.jsonl").open()]
    answers = [row["prediction"].rpartition("A:")[2].strip() for row in rows]
    rewards = grade([completion(answer) for answer in answers], [row["gold"] for row in rows], checker)
    assert len(rows) == 600
    assert [reward.answer == 1.0 for reward in rewards] == [row["correct"] for row in rows]


# Rows whose verdict differs from the recorded one: (file, row counted from 0) -> reason.
EXCEPTIONS = {
    ("math_verify_cases", 2): "1,22 is read as two numbers; upstream takes the comma for a decimal point",
    ("math_verify_cases", 10): "(9+1) for 10 is the question again, which must not earn a reward",
    ("math_verify_cases", 81): "the gold's box never ends; upstream takes the last number of it, and of the answer",
    ("peer_reward_cases", 34): "3+2 for 5 is the question again, which must not earn a reward",
    ("peer_reward_cases", 137): "upstream wants `</think>` too; the answer itself is right",
}


@pytest.mark.parametrize(
    ("name", "graded"), [("math_verify_cases", 90), ("peer_reward_cases", 136), ("gsm8k_example_solutions", 600)]
)
def test_recorded_verdicts_agree_except_for_the_listed_rows(tmp_path, name, graded):
    out = tmp_path / "graded.jsonl"
    grade_file(published(f"outputs/{name}.jsonl"), out, timeout=20.0)
    rows = [json.loads(line) for line in out.open()]
    recorded = {number: row.get("expected", row.get("correct")) for number, row in enumerate(rows)}
    known = [number for number, verdict in recorded.items() if verdict is not None]
    assert len(known) == graded
    others = {(name, number) for number in known if rows[number]["r_answer"] != float(recorded[number])}
    assert others == {row for row in EXCEPTIONS if row[0] == name}
