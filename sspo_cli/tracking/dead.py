"""Signs and likely reasons that a run learns nothing or that an evaluation measures nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sspo_cli.errors import quantity

# In a small rollout batch, all groups may have equal rewards by chance, but this is unlikely in ten consecutive batches. If a
# group has differing rewards with probability 0.1, all 4 groups of 10 consecutive batches have equal rewards in 1 of 68 runs.
MOST_ALIKE = 10  # consecutive rollout batches without a gradient at which a run without any earlier gradient stops
MOSTLY = 0.5  # a defect is reported if more than this share of an evaluation's answers have it


@dataclass(frozen=True, slots=True)
class Sampled:
    """Numbers of completions in a rollout batch.

    count      all completions
    untagged   completions without an answer in tags, and episodes without a proposal
    truncated  completions truncated at the token limit
    unformed   completions with a format reward of 0; 0 if the format is not rewarded
    right      completions with a right answer
    timeouts   completions whose answer check timed out
    alike      completions in groups in which all completions are equal
    masked     completions that are excluded from the loss
    episodes   completions that are episodes
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
    """Yield a sentence for each defect that all completions of a rollout batch have and that prevents learning.

    silent_template  name of the prompt template if it does not ask for tags although another template would; otherwise None
                     (see `RunOptions.silent_template`)
    """
    count = sampled.count
    if sampled.masked == count:
        yield "all completions are truncated, so learning.mask_truncated excludes all of them from the loss"
    if sampled.truncated == count:
        yield f"all {count} completions are truncated at {quantity(max_new_tokens, 'token')}; raise rollout.max_new_tokens"
    if sampled.untagged == count and sampled.episodes == count:
        yield f"no episode proposes a solution: {count} of {count}; a cold start (cold_start.steps) teaches the actions"
    elif sampled.untagged == count:
        yield untagged(count, count, silent_template, "a cold start (cold_start.steps) teaches the format")
    elif sampled.unformed == count:
        yield f"the format reward is 0 everywhere: {count} of {count}; a cold start (cold_start.steps) teaches the format"


def reasons(sampled: Sampled, silent_template: str | None, max_new_tokens: int) -> list[str]:
    """Return likely reasons why a rollout batch has no gradient, each with a remedy. The parameters are those of `defects`."""
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
    """Format the message that `count` of `of` answers are not in tags.

    The message ends with a remedy: a template that asks for tags if there is a `silent_template`, otherwise `otherwise`.
    """
    use_another = f"the template `{silent_template}` does not ask for tags; use prompt=think-answer"
    remedy = use_another if silent_template else otherwise
    return f"no answer in tags: {count} of {of}; {remedy}"


def evaluation_signs(rows: Sequence[Mapping[str, Any]], silent_template: str | None) -> list[str]:
    """Describe each defect of more than half of an evaluation's answers. Such a defect makes the score meaningless.

    rows             the evaluation's rows of `<benchmark>.jsonl`
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
            f"truncated at the limit of {quantity(limit, 'token')}: {cut} of {quantity(count, 'answer')}; "
            "raise evaluation.max_new_tokens or --max-new-tokens"
        )
    late = sum(row["status"] == "timeout" for row in rows)
    if late > MOSTLY * count:
        signs.append(f"answer checks that ran out of time: {late} of {count}; raise answer_timeout")
    return signs
