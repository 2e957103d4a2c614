"""Problems of the embedded task are right, distinct and the same on every machine; no test question is in training."""

import hashlib
import re

import pytest

from sspo_cli.errors import UserError
from sspo_cli.tasks import load_problems

# Hashes of all questions, answers and demonstrations. They change with the task, and so does every recorded run.
FINGERPRINTS = {"train": "1df8abaf45a60daf", "test": "c06f57e5550c5423"}


@pytest.fixture(scope="module")
def splits():
    return {split: load_problems("arithmetic", split=split) for split in ("train", "test")}


def test_questions_are_distinct_and_the_splits_disjoint(splits):
    train, test = ({p.question for p in splits[split]} for split in ("train", "test"))
    assert len(train) == len(splits["train"]) == 8192
    assert len(test) == len(splits["test"]) == 1024
    assert not train & test


def test_answers_are_right_and_running_totals_small(splits):
    for problem in [*splits["train"], *splits["test"]]:
        assert re.fullmatch(r"\d([+-]\d){3,5}", problem.question)
        assert eval(problem.question) == int(problem.answer)
        terms = re.findall(r"[+-]?\d", problem.question)
        assert all(0 <= eval("".join(terms[:n])) <= 20 for n in range(1, len(terms) + 1))


def test_demonstrations_answer_right_but_are_mostly_weak(splits):
    worked = well_formed = 0
    for problem in splits["train"]:
        thoughts, answer = re.fullmatch(
            r"(?:<think>)?([\d+\-=,]+)(?:</think>)?<answer>(\d+)(?:</answer>\.?)?", problem.demonstration
        ).groups()
        assert answer == problem.answer
        if "=" in thoughts:
            worked += 1
            assert all(eval(step.replace("=", "==")) for step in thoughts.split(","))
        else:
            assert thoughts == problem.question
        well_formed += bool(re.fullmatch(r"<think>[^<]*</think><answer>[^<]*</answer>", problem.demonstration))
    assert worked / 8192 == pytest.approx(0.4, abs=0.02)
    assert well_formed / 8192 == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("split", ["train", "test"])
def test_problems_are_the_same_everywhere(splits, split):
    text = "\n".join(f"{p.question} {p.answer} {p.demonstration}" for p in splits[split])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == FINGERPRINTS[split]


def test_limit_takes_the_first(splits):
    assert load_problems("arithmetic", split="test", limit=7) == splits["test"][:7]


def test_unknown_split_and_needless_path_are_refused():
    with pytest.raises(UserError, match="no split validation; it has train, test"):
        load_problems("arithmetic", split="validation")
    with pytest.raises(UserError, match="does not read path="):
        load_problems("arithmetic", path="data.jsonl", split="train")
