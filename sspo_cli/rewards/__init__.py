"""What is given: r = r_answer + r_format (appendix A). Text in, number out."""

from collections.abc import Sequence

from sspo_cli.rewards.answer import AnswerChecker, Verdict
from sspo_cli.rewards.format import format_reward
from sspo_cli.rewards.reading import extract_answer
from sspo_cli.rewards.version import checker_version
from sspo_cli.types import Reward

__all__ = ["AnswerChecker", "Verdict", "checker_version", "extract_answer", "format_reward", "grade"]


def grade(texts: Sequence[str], golds: Sequence[str], checker: AnswerChecker) -> list[Reward]:
    """A reward for each text, one completion with whatever the chat template opened of it."""
    extracted = [extract_answer(text, [gold]) for text, gold in zip(texts, golds, strict=True)]
    verdicts = checker.check(list(zip(extracted, golds, strict=True)))
    return [
        Reward(float(verdict.equal), format_reward(text), answer, verdict.status)
        for text, answer, verdict in zip(texts, extracted, verdicts, strict=True)
    ]
