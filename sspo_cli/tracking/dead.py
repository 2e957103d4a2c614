"""Signs and likely reasons of runs that learn nothing and of evaluations that measure nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sspo_cli.errors import quantity

# A single small rollout batch may have only groups of equal rewards by chance, but ten in a row are unlikely: if a group has
# differing rewards with probability 0.1, all 4 groups in each of 10 batches have equal rewards in 1 of 68 runs.
MOST_ALIKE = 10  # consecutive rollout batches without a gradient after which a run that never had one stops
MOSTLY = 0.5  # a defect is reported if more than this share of an evaluation's answers have it


@dataclass(frozen=True, slots=True)
class Sampled:
    """Numbers of completions in a rollout batch.

    count      all completions
    untagged   completions without an answer in tags
    truncated  completions cut at the token limit
    unformed   completions with a format reward of 0, if the format is rewarded
    right      completions with a right answer
    timeouts   completions whose answer check ran out of time
    alike      completions in a group whose completions are all equal
    masked     completions left out of the loss
    episodes   episodes
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


def defects(sampled: Sampled, silent_template: str | None, max_new_tokens: int) -> Iterator[str]:
    """Yield the defects of all completions of a rollout batch that prevent learning.

    silent_template  name of the prompt template if another one would ask for the tags, see `RunOptions.silent_template`
    """
    count = sampled.count
    if sampled.masked == count:
        yield "learning.mask_truncated leaves all completions out of the loss"
    if sampled.truncated == count:
        yield f"all {count} completions are cut at {quantity(max_new_tokens, 'token')}; raise rollout.max_new_tokens"
    if sampled.untagged == count and sampled.episodes == count:
        yield f"no episode proposes a solution: {count} of {count}; a cold start (cold_start.steps) teaches the actions"
    elif sampled.untagged == count:
        yield untagged(count, count, silent_template, "a cold start (cold_start.steps) teaches the format")
    elif sampled.unformed == count:
        yield f"the format reward is 0 everywhere: {count} of {count}; a cold start (cold_start.steps) teaches the format"


def reasons(sampled: Sampled, silent_template: str | None, max_new_tokens: int) -> list[str]:
    """Return likely reasons why a rollout batch has no gradient, each with a remedy."""
    likely = list(defects(sampled, silent_template, max_new_tokens))
    if sampled.timeouts == sampled.count:
        likely.append(f"all {sampled.count} answer checks ran out of time; raise answer_timeout")
    elif not sampled.right and sampled.untagged < sampled.count:
        likely.append("no answer is right; use easier tasks or a stronger model, or check the gold answers")
    if sampled.right == sampled.count:
        likely.append("every answer is right; use harder tasks")
    if sampled.alike == sampled.count:
        likely.append("the completions of each group are the same text; raise rollout.temperature")
    return likely or ["use easier or harder tasks, or a larger rollout.group_size"]


def untagged(count: int, of: int, silent_template: str | None, otherwise: str) -> str:
    """Report that answers are not in tags, with a remedy: a template that asks for tags, or `otherwise`."""
    use_another = f"the template `{silent_template}` does not ask for them, use prompt=think-answer"
    remedy = use_another if silent_template else otherwise
    return f"no answer in tags: {count} of {of}; {remedy}"


def evaluation_signs(rows: Sequence[Mapping[str, Any]], silent_template: str | None) -> list[str]:
    """Describe defects of most answers, which make an evaluation's score meaningless, in sentences with their counts.

    rows             rows of `<benchmark>.jsonl`
    silent_template  as in `defects`
    """
    count = len(rows)
    signs = []
    cut = sum(row["finish"] == "length" for row in rows)
    single = [row for row in rows if "outcome" not in row]
    missing = sum(row["extracted"] is None for row in single)
    if single and missing > MOSTLY * len(single):
        otherwise = "the model does not follow the format"
        signs.append(untagged(missing, len(single), silent_template, otherwise))
    if cut > MOSTLY * count:
        limit = max(row["max_new_tokens"] for row in rows)
        signs.append(
            f"cut at the limit of {quantity(limit, 'token')}: {cut} of {quantity(count, 'answer')}; "
            "raise evaluation.max_new_tokens or --max-new-tokens"
        )
    late = sum(row["status"] == "timeout" for row in rows)
    if late > MOSTLY * count:
        signs.append(f"answer checks that ran out of time: {late} of {count}; raise answer_timeout")
    return signs
