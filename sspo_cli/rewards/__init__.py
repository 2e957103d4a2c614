"""Rewards of completions: r = r_answer + r_format (appendix A). Text in, number out; imports no torch."""

from collections.abc import Sequence

from sspo_cli.rewards.answer import AnswerChecker, Verdict
from sspo_cli.rewards.format import format_reward
from sspo_cli.rewards.quick import respell
from sspo_cli.rewards.reading import check_gold, extract_answer, read_gold
from sspo_cli.rewards.scoring import PAPER, Scoring
from sspo_cli.rewards.version import checker_version
from sspo_cli.types import Reward

__all__ = [
    "PAPER",
    "AnswerChecker",
    "Scoring",
    "Verdict",
    "check_gold",
    "checker_version",
    "extract_answer",
    "format_reward",
    "grade",
    "read_gold",
    "respell",
]


def grade(texts: Sequence[str], golds: Sequence[str], checker: AnswerChecker) -> list[Reward]:
    """Compute the paper's reward of each completion.

    texts  completions, including an opening `<think>` that the chat template may have written
    """
    extracted = [extract_answer(text, [gold]) for text, gold in zip(texts, golds, strict=True)]
    verdicts = checker.check(list(zip(extracted, golds, strict=True)))
    return [
        Reward(float(verdict.equal), format_reward(text), answer, verdict.status)
        for text, answer, verdict in zip(texts, extracted, verdicts, strict=True)
    ]
