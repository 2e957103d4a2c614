"""Verdicts by kind of answer; the right verdicts were decided by hand."""

import pytest
from verdicts_of_numbers import NUMBERS
from verdicts_of_words import WORDS

from sspo_cli.rewards import Verdict, extract_answer

KINDS = NUMBERS | WORDS


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_of_a_kind(checker, kind):
    rows = [
        (gold, answer, right)
        for gold, sides in KINDS[kind].items()
        for right, side in zip((True, False), sides, strict=True)
        for answer in side
    ]
    answers = [extract_answer(f"<answer>{answer}</answer>", [gold]) for gold, answer, _ in rows]
    verdicts = checker.check([(answer, gold) for answer, (gold, _, _) in zip(answers, rows, strict=True)])
    assert [row for row, verdict in zip(rows, verdicts, strict=True) if verdict != Verdict(row[2], "ok")] == []
