"""Health check of a run from its metrics: signs of trouble with their values and remedies."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

FEWEST_STEPS = 20  # shorter runs show no trend
PART = 0.2  # share of the steps in the first part and in the last part, which are compared

# Limits of the metrics of a healthy run.
FALLEN = 0.8  # ratio of the final reward to the reward in the best fifth of the steps
COLLAPSED = 0.1  # ratio of the final entropy to the initial entropy
ALIKE = 0.8  # share of groups whose rewards are all equal
SOLVED = 0.9  # answer reward above which equal rewards mean success
ATTENUATED = 0.3  # share of tokens with w < 0.5
TRUNCATED = 0.2  # share of completions truncated at the token limit
MISMATCH = 0.05  # mean difference between the sampler's and the policy's log-probabilities, in nats
DRIFT = 0.1  # decrease in log-probability of tokens with Â < 0 within a rollout batch, in nats


def health(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe each sign of trouble in the rows of `metrics.jsonl`, in one sentence with its value and a remedy.

    Returns an empty list for a healthy run and for a run of fewer than 20 steps. The signs are computed from means over fifths
    of the steps. Signs that depend on staleness use only the last minibatch of each rollout batch, which is the stalest.
    """
    return list(_signs(rows)) if len(rows) >= FEWEST_STEPS else []


def _signs(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    count = max(1, round(PART * len(rows)))
    first, last = rows[:count], rows[-count:]
    latest = max(row.get("minibatch", 1) for row in last)
    stalest = [row for row in last if row.get("minibatch", 1) == latest]

    for key, name in (("reward/answer", "answer"), ("reward/format", "format")):
        best = max(_mean(rows[start : start + count], key) for start in range(0, len(rows), count))
        if (now := _mean(last, key)) < FALLEN * best:
            yield (
                f"the {name} reward has fallen, from {best:.2f} at its best to {now:.2f}; lower optimizer.learning_rate or "
                "learning.mu"
            )
    entropy, before = _mean(last, "policy/entropy"), _mean(first, "policy/entropy")
    alike, answer = _mean(last, "groups/equal_reward"), _mean(last, "reward/answer")
    if alike > ALIKE and answer < SOLVED:
        if entropy < COLLAPSED * before:
            yield (
                f"entropy has collapsed, from {before:.3g} to {entropy:.3g} nats, and {alike:.0%} of the groups have equal "
                f"rewards, at an answer reward of {answer:.2f}; lower optimizer.learning_rate or learning.mu"
            )
        else:
            yield (
                f"{alike:.0%} of the groups have equal rewards, so nothing is learned from them, at an answer reward of "
                f"{answer:.2f}; use easier or harder tasks, or a larger rollout.group_size"
            )
    if (truncated := _mean(last, "completions/truncated")) > TRUNCATED:
        yield f"{truncated:.0%} of the completions are truncated at the token limit; raise rollout.max_new_tokens"
    if (attenuated := _mean(stalest, "weights/attenuated")) > ATTENUATED:
        yield (
            f"{attenuated:.0%} of the tokens of the stalest minibatch have a weight below 0.5; lower "
            "optimizer.learning_rate or learning.mu, or widen the gate"
        )
    if (mismatch := _mean(last, "sampler/mismatch_mean")) > MISMATCH:
        yield (
            f"the sampler's log-probabilities differ from the policy's by {mismatch:.3f} nats; compute both in the same dtype, "
            "or set learning.importance_cap=2"
        )
    if (drift := -_mean(stalest, "ratio/negative_log_mean")) > DRIFT and drift > 2 * abs(
        _mean(stalest, "ratio/positive_log_mean")
    ):
        yield (
            f"completions with a negative advantage drive the policy: their tokens become less likely by {drift:.2f} nats "
            "within a rollout batch; lower optimizer.learning_rate, or tau_neg or eps_low of the objective"
        )


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """Average a metric over the rows that have it. Returns NaN, which exceeds no threshold, if no row has the metric."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return fmean(values) if values else float("nan")
