"""The loop does what its options say, checked with a sampler of known completions and a clock of known times."""

import re
import statistics
from pathlib import Path

import pytest
from scripted_runs import ANSWERS, FORMATS, REWARDS, Played, play, sampled_tokens
from small_runs import rows, without_times

from sspo_cli.errors import UserError
from sspo_cli.policy import tiny
from sspo_cli.tasks import load_problems


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("runs"), "played")


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """Return a run with another seed and other options than `played`."""
    options = {"seed": 1, "learning__std": "none", "learning__mask_truncated": "true", "steps": 4}
    return play(tmp_path_factory.mktemp("runs"), "varied", **options)


def by_rollout(values: list[float]) -> list[float]:
    """Return the mean over the two minibatches of each rollout batch."""
    return [statistics.mean(values[start : start + 2]) for start in range(0, len(values), 2)]


def test_rewards_are_those_of_the_completions(played: Played) -> None:
    assert by_rollout(played["reward/answer"]) == [2 / 16] * 3
    assert by_rollout(played["reward/format"]) == pytest.approx([9.5 / 16] * 3)
    assert by_rollout(played["completions/truncated"]) == [2 / 16] * 3
    # Only the group in the second place has equal rewards, although its answers differ. Two others have equal answers.
    assert by_rollout(played["groups/equal_reward"]) == [1 / 4] * 3


def test_tokens_and_timeouts_are_counted_over_the_whole_run(played: Played) -> None:
    first, second, third = (sampled_tokens(played, rollout) for rollout in range(3))
    assert played["tokens"] == [n for n in (first, first + second, first + second + third) for _ in range(2)]
    assert by_rollout(played["completions/length"]) == pytest.approx([n / 16 for n in (first, second, third)])
    assert played["grading/timeouts"] == [1, 1, 2, 2, 3, 3]


def test_a_truncated_completion_that_is_left_out_of_the_loss_counts_in_the_length(varied: Played) -> None:
    lengths = [sampled_tokens(varied, rollout) / 16 for rollout in range(2)]
    assert by_rollout(varied["completions/length"]) == pytest.approx(lengths)


def test_the_mismatch_is_the_sampler_s_distance_from_the_policy_at_the_rollout_s_temperature(played: Played) -> None:
    assert played["sampler/mismatch_max"] == pytest.approx([0.5] * 6, abs=1e-5)
    assert played["sampler/mismatch_mean"] == pytest.approx(
        [0.1 + 0.4 / length for length in played["completions/length"]], abs=1e-5
    )


def test_times_are_those_of_the_step_and_speed_is_without_evaluations(played: Played) -> None:
    assert played["time/sync"] == [1.0, 0.0] * 3
    assert played["time/sampling"] == [2.0, 0.0] * 3
    assert played["time/grading"] == [0.5, 0.0] * 3
    # Each step takes a forward pass, and the first of a batch another for the second minibatch's old log-probabilities.
    assert played["time/learning"] == [0.5, 0.25] * 3
    assert played["time/step"] == [4.0, 0.25] * 3
    # An evaluation takes 1 s of sync, 5 s of sampling, and 0.5 s of grading for each of its 8 answers.
    assert played["time/elapsed"] == [4.0, 4.25, 4.25 + 10.0 + 4.0, 18.5, 18.5 + 10.0 + 4.0, 32.75]
    busy = [4.0, 4.25, 8.25, 8.5, 12.5, 12.75]
    assert played["time/tokens_per_second"] == pytest.approx(
        [tokens / seconds for tokens, seconds in zip(played["tokens"], busy, strict=True)]
    )


def test_a_resumed_part_has_its_own_time_and_speed_and_all_else_as_if_not_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], played: Played
) -> None:
    resumed = play(tmp_path, "resumed", {"stop_at_rollout": 2}, evaluation__every="null")
    assert [row["step"] for row in resumed.summary()] == [0, 6]  # evaluated before the first step and after the last
    assert len(resumed.engines) == 2
    assert [len(engine.rollouts) for engine in resumed.engines] == [2, 1]  # interrupted after step 3
    assert without_times(resumed.folder) == without_times(played.folder)
    before = resumed["tokens"][3]
    assert resumed["time/elapsed"] == [4.0, 4.25, 8.25, 0.25, 4.25, 4.5]
    new = [tokens - before for tokens in resumed["tokens"][3:]]
    assert new[0] == 0 < new[1]
    assert resumed["time/tokens_per_second"][3:] == pytest.approx([0.0, new[1] / 4.25, new[2] / 4.5])
    printed = capsys.readouterr().out.splitlines()
    assert f"resuming from {resumed.folder / 'checkpoints' / 'step-3'}" in printed
    (line,) = (line for line in printed if line.startswith("step 5/6"))
    assert line.endswith("0:00:02 left  sync 1.00 s")  # half of the 4.25 s that this part's two steps have taken
    assert sum(line.startswith("evaluating on arithmetic: 8/8 in") for line in printed) == 2
    assert "step 6: arithmetic Pass@1 50.0 % (21.5 to 78.5 %), n = 8, 0.0 % truncated" in printed


def test_advantages_are_divided_by_what_the_options_say(played: Played, varied: Played) -> None:
    for run, deviation in ((played, statistics.stdev), (varied, lambda rewards: 1.0)):
        seen = []
        for row, place, member in run.kept():
            rewards = REWARDS[place]
            expected = (rewards[member] - statistics.mean(rewards)) / (1.0 if place == 1 else deviation(rewards))
            assert row["advantage"] == pytest.approx(expected, abs=1e-6)
            assert (row["r_answer"], row["r_format"]) == (ANSWERS[place][member], FORMATS[place][member])
            seen.append(place)
        assert set(seen) - {1}


def test_truncated_completions_are_left_out_only_if_the_options_say_so(played: Played, varied: Played) -> None:
    for run, masked in ((played, False), (varied, True)):
        truncated = [row for row, _, _ in run.kept() if row["truncated"]]
        assert truncated
        assert all((set(row["weights"]) == {0.0}) == masked for row in truncated)
        assert all(min(row["weights"]) > 0 for row, _, _ in run.kept() if not row["truncated"])


def test_a_seed_draws_its_own_problems_and_samples(played: Played, varied: Played) -> None:
    drawn = [[q for questions, _, _ in run.engines[0].rollouts for q in questions] for run in (played, varied)]
    assert len(set(drawn[0])) == 12  # of 40, without replacement
    assert drawn[0][:8] != drawn[1]
    seeds = [sampling.seed for run in (played, varied) for _, _, sampling in run.engines[0].rollouts]
    assert len(set(seeds)) == 5


def test_a_rollout_is_sampled_as_the_options_say(played: Played) -> None:
    for questions, group_size, sampling in played.engines[0].rollouts:
        assert (len(questions), group_size) == (4, 4)
        assert (sampling.temperature, sampling.max_new_tokens) == (0.7, 64)


def test_every_evaluation_is_made_under_the_options_conditions_whatever_the_run_s_seed(
    played: Played, varied: Played
) -> None:
    (first, *others), of_varied = played.engines[0].evaluations, varied.engines[0].evaluations
    assert [len(others), len(of_varied)] == [3, 3]
    assert (len(first[0]), first[1]) == (8, 1)
    assert (first[2].temperature, first[2].max_new_tokens) == (0.0, 9)
    assert all(call == first for call in [*others, *of_varied])
    assert not list((played.folder / "eval" / "partial").iterdir())  # no partial results are left
    summaries = [row for run in (played, varied) for row in run.summary()]
    assert [row["step"] for row in summaries] == [0, 2, 4, 6, 0, 2, 4]
    for row in summaries:
        assert (row["correct"], row["n"], row["timeouts"], row["truncated"]) == (4, 8, 2, 0)
        assert (row["format"], row["seed"], row["max_new_tokens"]) == (0.75, 0, 9)


def test_the_sampler_is_checked_for_the_capacity_of_the_longest_prompt_and_completion(played: Played) -> None:
    longest = max(len(problem.question) for problem in load_problems("arithmetic", split="train", limit=40))
    around = len(["<|im_start|>", "user", "\n", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"])
    assert played.engines[0].capacity == around + longest + 64


def test_an_evaluation_longer_than_the_context_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"and 1020 for the completion, but the model's context is 1024"):
        play(tmp_path, "long", evaluation__max_new_tokens=1020)


def test_without_its_own_limit_an_evaluation_has_the_rollout_s(tmp_path: Path) -> None:
    options = {"evaluation__max_new_tokens": "null", "rollout__max_new_tokens": 33, "steps": 1}
    run = play(tmp_path, "unlimited", **options)
    assert {sampling.max_new_tokens for _, _, sampling in run.engines[0].calls} == {33}


def test_tasks_are_drawn_by_their_weights_and_each_rollout_is_split_again(tmp_path: Path) -> None:
    for task in (1, 2):
        lines = [f'{{"id": "{n}+{task}", "question": "{n}+{task}", "answer": "{n + task}"}}\n' for n in range(60)]
        (tmp_path / f"{task}.jsonl").write_text("".join(lines))
    tasks = f"[{{name: file, path: {tmp_path}/1.jsonl}}, {{name: file, path: {tmp_path}/2.jsonl, weight: 3}}]"
    sizes = {"rollout__prompts": 24, "rollout__group_size": 2, "learning__mu": 1, "steps": 3}
    run = play(tmp_path, "weighted", tasks=tasks, evaluation__every="null", evaluation__validation=8, **sizes)
    held_out = {row["id"] for row in rows(run.folder / "eval" / "validation.jsonl")}
    assert sorted(id_.rpartition("+")[2] for id_ in held_out) == ["1"] * 2 + ["2"] * 6
    drawn = [question for questions, _, _ in run.engines[0].rollouts for question in questions]
    assert len(drawn) == 72
    assert 43 <= sum(question.endswith("+2") for question in drawn) <= 65  # 54, give or take three standard deviations
    first_places = [place for row, place, member in run.kept() if member == 0][::2]
    assert len(first_places) == 3
    assert len(set(first_places)) > 1


def test_the_optimizer_is_the_one_of_the_options(played: Played) -> None:
    rates = [0.5e-3, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3]  # two steps of warm-up, then linear to 0 after the sixth
    assert played["optimizer/learning_rate"] == pytest.approx(rates)
    assert [rate for rate, *_ in played.updates] == pytest.approx(rates)
    assert {tuple(rest) for _, *rest in played.updates} == {((0.8, 0.97), 0.03, 0.25)}


def test_steps_with_a_loss_that_is_not_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    run = play(tmp_path, "broken", {"broken_rollout": 2}, learning__importance_cap=2, evaluation__every="null")
    assert run["policy/skipped"] == [0, 0, 1, 2, 2, 2]
    assert [loss is None for loss in run["policy/loss"]] == [False, False, True, True, False, False]
    assert len(run.updates) == 4


def test_what_the_chat_template_opened_counts_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = tiny.CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>")
    assert opened != tiny.CHAT_TEMPLATE
    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", opened)
    run = play(tmp_path, "opened", {"opening": "<think>"}, steps=2)
    # Completions that do not begin with `<think>` themselves now count as if they did.
    formats = [[1, 1, 0.25, 0.25], [0.25, 1, 1, 1], [1, 0.25, 0.25, 1], [1, 0.25, 0.25, 1]]
    for row, place, member in run.kept():
        assert row["completion"].startswith("<think>")
        assert "<think>" not in row["pieces"]
        assert (row["r_answer"], row["r_format"]) == (ANSWERS[place][member], formats[place][member])
    assert by_rollout(run["reward/format"]) == pytest.approx(
        [statistics.mean(share for group in formats for share in group)]
    )
    answers = rows(run.folder / "eval" / "arithmetic.jsonl")
    assert [row["format"] for row in answers] == [formats[place % 4][0] for place in range(8)] * 2
    assert all(row["completion"].startswith("<think>") for row in answers)


def test_threads_and_the_time_limit_of_a_check_are_those_of_the_options(played: Played) -> None:
    assert played.process == {"threads": 2, "timeout": 7.5}


def test_a_finished_run_says_what_ails_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scripted sampler's log-probabilities are off by 0.1, and by more at first tokens."""
    play(tmp_path, "ailing", steps=20, evaluation__every="null")
    (sign,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("health: "))
    assert re.match(r"health: the sampler's log-probabilities differ from the policy's by 0\.1\d\d nats", sign)
