"""`rollout.equal_groups: drop` replaces groups of equal rewards by groups of further prompts, and records the cost."""

from types import SimpleNamespace

import pytest
from scripted_runs import ANSWERS, REWARDS, Played, play, sampled_tokens
from small_runs import without_times

from sspo_cli.config import RolloutOptions, validate
from sspo_cli.errors import UserError
from sspo_cli.run.sampling import fill
from sspo_cli.types import Reward

OPTIONS = {"steps": 6, "evaluation__every": "null", "rollout__equal_groups": "drop"}
# The second of the scripted groups has equal rewards; the third and the fourth have equal answers.
assert [len(set(rewards)) > 1 for rewards in REWARDS] == [True, False, True, True]
assert [len(set(answers)) > 1 for answers in ANSWERS] == [True, True, False, False]


@pytest.fixture(scope="module", params=["reward", "answer"])
def dropped(request, tmp_path_factory) -> tuple[str, Played]:
    runs = tmp_path_factory.mktemp("runs")
    return request.param, play(runs, "dropped", rollout__equal_in=request.param, **OPTIONS)


def asked(run: Played) -> list[list[str]]:
    """Return the questions of every call of the sampler in a rollout."""
    return [questions for questions, _, _ in run.engines[0].rollouts]


def test_further_prompts_are_sampled_in_the_place_of_equal_groups_and_counted(dropped, tmp_path):
    equal_in, run = dropped
    replaced = {"reward": 1, "answer": 2}[equal_in]
    assert [len(questions) for questions in asked(run)] == [4, replaced] * 3
    assert run["groups/sampled"] == [4 + replaced, None] * 3
    plain = play(tmp_path, "plain", **{**OPTIONS, "steps": 12, "rollout__equal_groups": "keep"})
    assert plain["groups/sampled"] == [None] * 12
    in_order = [question for questions in asked(plain) for question in questions]
    assert [question for questions in asked(run) for question in questions] == in_order[: 3 * (4 + replaced)]


def test_the_rollout_batch_has_none_of_them_and_the_tokens_of_all(dropped):
    equal_in, run = dropped
    if equal_in == "reward":
        assert run["groups/equal_reward"] == [0] * 6
    # Only the groups in the first two places of each call have right answers, in one of their four completions.
    right = {"reward": 2 / 16, "answer": 4 / 16}[equal_in]
    halves = zip(run["reward/answer"][::2], run["reward/answer"][1::2], strict=True)
    assert [(first + second) / 2 for first, second in halves] == [right] * 3
    of_calls = [sampled_tokens(run, call) for call in range(6)]
    assert run["tokens"][::2] == [sum(of_calls[: 2 * batch]) for batch in (1, 2, 3)]


def test_a_resumed_run_draws_the_prompts_that_it_would_have(dropped, tmp_path):
    equal_in, run = dropped
    # The run is stopped in the first call of the third rollout batch; each batch before took two calls.
    resumed = play(tmp_path, "resumed", {"stop_at_rollout": 5}, rollout__equal_in=equal_in, **OPTIONS)
    assert len(resumed.engines) == 2
    assert without_times(resumed.folder) == without_times(run.folder)


class Sampler:
    """Sampler of groups whose rewards differ as `differing` says; it records how many groups are requested at a time."""

    def __init__(self, differing: list[bool]) -> None:
        self.groups = [
            SimpleNamespace(
                number=number, rewards=[Reward(1.0, 0.0, None, "ok"), Reward(float(not differs), 0.0, None, "ok")]
            )
            for number, differs in enumerate(differing)
        ]
        self.asked: list[int] = []

    def __call__(self, count: int) -> list:
        start = sum(self.asked)
        self.asked.append(count)
        return self.groups[start : start + count]


@pytest.mark.parametrize(
    ("differing", "most", "asked", "batch"),
    [
        ([1, 1, 1], 4, [3], [0, 1, 2]),
        ([1, 0, 1, 0, 0, 1], 4, [3, 1, 1, 1], [0, 2, 5]),
        ([0, 0, 0, 0, 1, 0, 1, 1], 4, [3, 3, 2], [4, 6, 7]),
        ([0, 1, 0, 0, 0, 1, 1], 2, [3, 2, 1], [1, 5, 0]),  # stops at six and adds the first equal group
        ([0] * 6, 2, [3, 3], [0, 1, 2]),
    ],
)
def test_a_batch_is_filled_up_to_the_limit(differing, most, asked, batch):
    sample = Sampler(list(map(bool, differing)))
    options = RolloutOptions(prompts=3, equal_groups="drop", most_sampled=most)
    assert [group.number for group in fill(options, sample)] == batch
    assert sample.asked == asked


def test_kept_groups_ask_for_nothing_more():
    sample = Sampler([False, True, False])
    assert [group.number for group in fill(RolloutOptions(prompts=3), sample)] == [0, 1, 2]
    assert sample.asked == [3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"equal_in": "answer"}, "equal_groups = keep"),
        ({"most_sampled": 2}, "equal_groups = keep"),
        ({"equal_groups": "drop", "most_sampled": 1}, "most_sampled"),
        ({"equal_groups": "skip"}, "equal_groups"),
    ],
    ids=str,
)
def test_what_would_have_no_effect_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        validate({"rollout": options})
