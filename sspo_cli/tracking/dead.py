"""Runs and evaluations that teach or measure nothing: how that shows, and what is likely to be the reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A small rollout batch may well be all alike by chance, ten in a row of a run that never had a gradient are not: with groups
# that differ in one case of ten, four groups in each of ten rollouts are all alike in one run of 68.
MOST_ALIKE = 10  # rollout batches without any gradient after which a run stops that never had one
MOSTLY = 0.5  # share of the answers of an evaluation from which a defect is what was measured


@dataclass(frozen=True, slots=True)
class Sampled:
    """What is counted of the completions of a rollout batch, each of a group.

    count      completions
    untagged   without an answer in its tags
    truncated  cut at the token limit
    unformed   with a format reward of 0, if the format is rewarded
    right      with a right answer
    timeouts   whose answer check ran out of time
    alike      in a group of equal texts
    masked     left out of the loss
    episodes   played in turns
    """

    count: int
    untagged: int
    truncated: int
    unformed: int
    right: int
    timeouts: int
    alike: int
    masked: int
    episodes: int


def defects(sampled: Sampled, template: str, asks_for_tags: bool, max_new_tokens: int) -> Iterator[str]:
    """Name what all completions of a rollout batch have in common that keeps them from being learned from."""
    count = sampled.count
    if sampled.masked == count:
        yield "learning.mask_truncated leaves all completions out of the loss"
    if sampled.truncated == count:
        yield f"all {count} completions are cut at {max_new_tokens} tokens; raise rollout.max_new_tokens"
    if sampled.untagged == count and sampled.episodes == count:
        yield f"no episode proposes a solution: {count} of {count}; a cold start (cold_start.steps) teaches the actions"
    elif sampled.untagged == count:
        yield untagged(count, count, template, asks_for_tags, "a cold start (cold_start.steps) teaches the format")
    elif sampled.unformed == count:
        yield f"the format reward is 0 everywhere: {count} of {count}; a cold start (cold_start.steps) teaches the format"


def reasons(sampled: Sampled, template: str, asks_for_tags: bool, max_new_tokens: int) -> list[str]:
    """Return what is likely to keep a rollout batch from having any gradient, each with what to change."""
    likely = list(defects(sampled, template, asks_for_tags, max_new_tokens))
    if sampled.timeouts == sampled.count:
        likely.append(f"all {sampled.count} answer checks ran out of time; raise answer_timeout")
    elif not sampled.right and sampled.untagged < sampled.count:
        likely.append("no answer is right; take easier tasks or a stronger model, or check the gold answers")
    if sampled.right == sampled.count:
        likely.append("every answer is right; take harder tasks")
    if sampled.alike == sampled.count:
        likely.append("the completions of each group are the same text; raise rollout.temperature")
    return likely or ["take easier or harder tasks, or a larger rollout.group_size"]


def untagged(count: int, of: int, template: str, asks_for_tags: bool, otherwise: str) -> str:
    """Say that answers are not in tags, and what to do: take a template that asks for them, or `otherwise`."""
    remedy = otherwise if asks_for_tags else f"the template `{template}` does not ask for them, use prompt=think-answer"
    return f"no answer in tags: {count} of {of}; {remedy}"


def evaluation_signs(rows: Sequence[Mapping[str, Any]], template: str, asks_for_tags: bool) -> list[str]:
    """Name what an evaluation measured instead of the model's answers, in a sentence each with its count.

    rows  as in `<benchmark>.jsonl`
    """
    count = len(rows)
    signs = []
    cut = sum(row["finish"] == "length" for row in rows)
    single = [row for row in rows if "outcome" not in row]
    missing = sum(row["extracted"] is None for row in single)
    if single and missing > MOSTLY * len(single):
        otherwise = "the model does not keep to the format"
        signs.append(untagged(missing, len(single), template, asks_for_tags, otherwise))
    if cut > MOSTLY * count:
        limit = max(row["max_new_tokens"] for row in rows)
        signs.append(f"cut at the limit of {limit} tokens: {cut} of {count} answers; raise evaluation.max_new_tokens")
    late = sum(row["status"] == "timeout" for row in rows)
    if late > MOSTLY * count:
        signs.append(f"answer checks that ran out of time: {late} of {count}; raise answer_timeout")
    return signs
