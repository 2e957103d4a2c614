"""Each sign of trouble is reported at its threshold with its value, and a healthy run has none."""

import pytest

from sspo_cli.tracking.health import health

HEALTHY = {
    "policy/entropy": 0.5,
    "groups/equal_reward": 0.3,
    "reward/answer": 0.5,
    "reward/format": 0.9,
    "completions/truncated": 0.01,
    "weights/attenuated": 0.02,
    "sampler/mismatch_mean": 1e-6,
    "ratio/negative_log_mean": -0.01,
    "ratio/positive_log_mean": 0.01,
}


def rows(steps: int = 40, **at_the_end: float) -> list[dict]:
    """Return the metrics of a run with μ = 2 whose last fifth has the values `at_the_end`; `__` stands for the slash."""
    changed = {key.replace("__", "/"): value for key, value in at_the_end.items()}
    return [
        {"step": step, "minibatch": step % 2 + 1, **HEALTHY, **(changed if step >= 0.8 * steps else {})}
        for step in range(steps)
    ]


def test_a_healthy_run_has_no_sign():
    assert health(rows()) == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"policy__entropy": 0.04, "groups__equal_reward": 0.9},
            "entropy has collapsed, from 0.5 to 0.04 nats, and 90% of the groups have equal rewards",
        ),
        ({"groups__equal_reward": 0.9}, "90% of the groups have equal rewards, so nothing is learned from them"),
        ({"reward__answer": 0.39}, "the answer reward has fallen, from 0.50 at its best to 0.39"),
        ({"reward__format": 0.2}, "the format reward has fallen, from 0.90 at its best to 0.20"),
        ({"completions__truncated": 0.25}, "25% of the completions are truncated at the token limit"),
        ({"weights__attenuated": 0.4}, "40% of the tokens of the stalest minibatch have a weight below 0.5"),
        ({"sampler__mismatch_mean": 0.06}, "log-probabilities differ from the policy's by 0.060 nats"),
        ({"ratio__negative_log_mean": -0.3}, "their tokens become less likely by 0.30 nats"),
    ],
)
def test_a_sign_is_named_with_its_value(values, sentence):
    (sign,) = health(rows(**values))
    assert sentence in sign
    assert "; " in sign  # the advice follows


@pytest.mark.parametrize(
    "values",
    [
        {"policy__entropy": 0.01, "groups__equal_reward": 0.95, "reward__answer": 0.98},  # solved
        {"policy__entropy": 0.01},  # low entropy, but rewards still differ
        {"reward__answer": 0.41},
        {"completions__truncated": 0.19},
        {"weights__attenuated": 0.29},
        {"sampler__mismatch_mean": 0.049},
        {"ratio__negative_log_mean": -0.09},
        {"ratio__negative_log_mean": -0.3, "ratio__positive_log_mean": 0.2},  # both signs move
        {"weights__attenuated": None},  # a step without any advantage
    ],
    ids=str,
)
def test_what_is_no_sign(values):
    assert health(rows(**values)) == []


def test_only_the_stalest_minibatch_counts_for_what_is_due_to_staleness():
    fresh = [row | ({"weights/attenuated": 0.9} if row["minibatch"] == 1 else {}) for row in rows()]
    assert health(fresh) == []


def test_a_short_run_says_nothing():
    assert health(rows(19, completions__truncated=1.0)) == []
    assert len(health(rows(20, completions__truncated=1.0))) == 1
