"""The loop does what its options say, seen from a sampler whose completions, and a clock whose times, are known."""

import json
import math
import re
import signal
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import rows

from sspo_cli import session
from sspo_cli.config import load_config
from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.policy import tiny
from sspo_cli.policy.model import Policy
from sspo_cli.rewards import AnswerChecker, Verdict
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.tasks import load_problems
from sspo_cli.types import Completion

# By the prompt's place in the rollout, modulo 4, the G = 4 completions, and their rewards r_answer and r_format. {gold} is
# right, {wrong} is not, and the check of `never` runs out of time. A completion that ends in … is truncated there.
TEXTS = [
    ["<think>a</think><answer>{gold}</answer>", "<think>a</think><answer>{wrong}</answer>", "hello", "<think>a…"],
    ["b<answer>{gold}</answer>b", *["<think></think><answer>{wrong}</answer>"] * 3],
    ["<think>c</think><answer>never</answer>", "hello", "<think>e…", "<think></think><answer>{wrong}</answer>"],
    ["<think></think><answer>{wrong}</answer>", "d", "d", "<think></think><answer>{wrong}</answer>"],
]
ANSWERS = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
FORMATS = [[1, 1, 0, 0.25], [0, 1, 1, 1], [1, 0, 0.25, 1], [1, 0, 0, 1]]
REWARDS = [[a + f for a, f in zip(*pair, strict=True)] for pair in zip(ANSWERS, FORMATS, strict=True)]

OPTIONS = {
    "steps": 6,
    "threads": 2,
    "answer_timeout": 7.5,
    "model.tiny": "{hidden_size: 16, layers: 1, heads: 1, intermediate_size: 16}",
    "tasks": "[{name: arithmetic, limit: 40}]",
    "rollout.prompts": 4,
    "rollout.group_size": 4,
    "rollout.temperature": 0.7,
    "learning.mu": 2,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 2,
    "optimizer.betas": "[0.8, 0.97]",
    "optimizer.weight_decay": 0.03,
    "optimizer.max_grad_norm": 0.25,
    "cold_start.steps": 0,
    "evaluation.benchmarks": "[{name: arithmetic, split: test, limit: 8}]",
    "evaluation.every": 2,
    "evaluation.max_new_tokens": 9,
}


@dataclass
class Clock:
    """Seconds that pass only where a test lets them."""

    now: float = 100.0


@dataclass
class ScriptedEngine:
    """Gives `TEXTS`. A rollout takes 2 s, an evaluation 5 s, grading 0.5 s and a forward pass 0.25 s.

    Its log-probabilities are the policy's at the rollout's temperature, plus 0.5 for a first token and minus 0.1 for the
    others.

    stop_at_rollout  the rollout, counted from 1, in which Ctrl-C is pressed
    broken_rollout   the rollout whose log-probabilities are NaN
    opening          what the chat template has written of each completion
    """

    policy: Policy
    clock: Clock
    calls: list[tuple[list[str], int, Sampling]] = field(default_factory=list)
    stop_at_rollout: int | None = None
    broken_rollout: int | None = None
    opening: str = ""
    capacity: int = 0
    name = "scripted"

    @property
    def rollouts(self) -> list[tuple[list[str], int, Sampling]]:
        return [call for call in self.calls if call[2].temperature > 0]

    @property
    def evaluations(self) -> list[tuple[list[str], int, Sampling]]:
        return [call for call in self.calls if call[2].temperature == 0]

    def check_capacity(self, tokens: int) -> None:
        self.capacity = tokens

    def sleep(self) -> None: ...

    def sync(self, policy: Policy) -> dict[str, float]:
        self.policy = policy
        return {}

    def generate(self, request: Request, on_completion: Callable | None = None) -> list[list[Completion]]:
        prompts, group_size, sampling = request.prompts, request.group_size, request.sampling
        questions = [re.search(r"user\n(.*?)<", self.policy.tokenizer.decode(ids))[1] for ids in prompts]
        self.calls.append((questions, group_size, sampling))
        self.clock.now += 2.0 if sampling.temperature > 0 else 5.0
        if len(self.rollouts) == self.stop_at_rollout:
            signal.raise_signal(signal.SIGINT)
        return [
            [self._completion(ids, question, TEXTS[place % 4][member % 4]) for member in range(group_size)]
            for place, (ids, question) in enumerate(zip(prompts, questions, strict=True))
        ]

    def _completion(self, prompt: list[int], question: str, text: str) -> Completion:
        gold = sum(map(int, re.findall(r"[+-]?\d+", question)))
        truncated, text = text.endswith("…"), text.rstrip("…").format(gold=gold, wrong=gold + 1)
        text = text.removeprefix(self.opening)
        tokenizer = self.policy.tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * (not truncated)
        with torch.no_grad():
            logits = self.policy.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 0.7
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0] - 0.1
        logprobs[0] += math.nan if len(self.rollouts) == self.broken_rollout else 0.6
        return Completion(ids, logprobs.tolist(), text, truncated)


@dataclass
class Played:
    """A finished run: its folder, its engines (a second one after an interruption), its metrics by name.

    updates  what AdamW was given in each step that was taken: learning rate, betas, weight decay, largest norm
    process  seconds of the checks of answers, and the threads
    """

    folder: Path
    engines: list[ScriptedEngine]
    updates: list[tuple[float, tuple[float, float], float, float]]
    process: dict[str, float]

    def __getitem__(self, name: str) -> list[Any]:
        return [row.get(name) for row in rows(self.folder / "metrics.jsonl")]

    def summary(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "eval" / "summary.json").read_text())

    def kept(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        """The rows of `completions.jsonl`, each with its prompt's place in the rollout and its number in the group."""
        for number, row in enumerate(rows(self.folder / "completions.jsonl")):
            questions, group_size, _ = self.engines[0].rollouts[row["rollout"]]
            yield row, questions.index(row["problem"]), number % group_size


def play(runs: Path, name: str, script: dict[str, Any] | None = None, **options: Any) -> Played:
    """Train with the scripted engine, `script` being what is special about it. A run that was interrupted is resumed."""
    clock, engines, updates, norms = Clock(), [], [], []

    def open_engine(rollout: Any, policy: Policy, named: bool) -> ScriptedEngine:
        engines.append(ScriptedEngine(policy, clock, **({} if engines else script or {})))
        return engines[-1]

    step, clip = torch.optim.AdamW.step, torch.nn.utils.clip_grads_with_norm_

    def noted_clip(parameters: Any, max_norm: float, *arguments: Any) -> None:
        norms.append(max_norm)
        clip(parameters, max_norm, *arguments)

    def noted_step(self: torch.optim.AdamW) -> None:
        matrices = self.param_groups[0]
        updates.append((matrices["lr"], matrices["betas"], matrices["weight_decay"], norms[-1]))
        step(self)

    process: dict[str, float] = {}
    open_checker = AnswerChecker.__init__

    def noted_checker(self: AnswerChecker, *, timeout: float) -> None:
        process["timeout"] = timeout
        open_checker(self, timeout=timeout)

    submit, check, logprobs = AnswerChecker.submit, AnswerChecker.check, Policy.logprobs

    def submit_or_time_out(self: AnswerChecker, prediction: str | None, gold: str) -> Future[Verdict]:
        if prediction != "never":
            return submit(self, prediction, gold)
        late: Future[Verdict] = Future()
        late.set_result(Verdict(False, "timeout"))
        return late

    def slow_check(self: AnswerChecker, pairs: Any) -> list[Verdict]:
        clock.now += 0.5
        return check(self, pairs)

    def slow_logprobs(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        clock.now += 0.25
        return logprobs(*arguments)

    values = {**OPTIONS, **{key.replace("__", "."): value for key, value in options.items()}}
    config = load_config(overrides=[f"{key}={value}" for key, value in values.items()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_engine", open_engine)
        patch.setattr(torch.optim.AdamW, "step", noted_step)
        patch.setattr(torch.nn.utils, "clip_grads_with_norm_", noted_clip)
        patch.setattr(torch, "set_num_threads", lambda threads: process.update(threads=threads))
        patch.setattr(AnswerChecker, "__init__", noted_checker)
        patch.setattr(AnswerChecker, "submit", submit_or_time_out)
        patch.setattr(AnswerChecker, "check", slow_check)
        patch.setattr(Policy, "logprobs", slow_logprobs)
        patch.setattr("time.perf_counter", lambda: clock.now)
        try:
            session.start_run(config, runs / name, [])
        except Interrupted:
            session.resume_run(runs / name, None, [])
    return Played(runs / name, engines, updates, process)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("runs"), "played")


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """With another seed and other options."""
    options = {"seed": 1, "learning__std": "none", "learning__mask_truncated": "true", "steps": 4}
    return play(tmp_path_factory.mktemp("runs"), "varied", **options)


def sampled_tokens(played: Played, rollout: int) -> int:
    """One token for each character or tag, and one for the end of what is not truncated."""
    questions, _, _ = played.engines[0].rollouts[rollout]
    total = 0
    for place, question in enumerate(questions):
        for text in TEXTS[place]:
            gold = eval(question)
            written = re.sub(r"</?(think|answer)>", "T", text.format(gold=gold, wrong=gold + 1))
            total += len(written.removesuffix("…")) + (not written.endswith("…"))
    return total


def by_rollout(values: list[float]) -> list[float]:
    """The mean over the two minibatches of each rollout batch."""
    return [statistics.mean(values[start : start + 2]) for start in range(0, len(values), 2)]


def test_rewards_are_those_of_the_completions(played: Played) -> None:
    assert by_rollout(played["reward/answer"]) == [2 / 16] * 3
    assert by_rollout(played["reward/format"]) == pytest.approx([9.5 / 16] * 3)
    assert by_rollout(played["completions/truncated"]) == [2 / 16] * 3
    # Only the group in the second place: its answers differ and its rewards do not. Two others have equal answers.
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
    assert played["time/sampling"] == [2.0, 0.0] * 3
    assert played["time/grading"] == [0.5, 0.0] * 3
    # One forward pass for the step, and before the first one another for the second minibatch's old log-probabilities.
    assert played["time/learning"] == [0.5, 0.25] * 3
    assert played["time/step"] == [3.0, 0.25] * 3
    assert played["time/elapsed"] == [3.0, 3.25, 3.25 + 5.5 + 3.0, 12.0, 12.0 + 5.5 + 3.0, 20.75]
    busy = [3.0, 3.25, 6.25, 6.5, 9.5, 9.75]
    assert played["time/tokens_per_second"] == pytest.approx(
        [tokens / seconds for tokens, seconds in zip(played["tokens"], busy, strict=True)]
    )


def test_a_resumed_part_has_a_time_and_a_speed_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resumed = play(tmp_path, "resumed", {"stop_at_rollout": 2}, evaluation__every="null")
    assert [row["step"] for row in resumed.summary()] == [
        0,
        6,
    ]  # an evaluation before the first step and after the last
    assert len(resumed.engines) == 2
    assert [len(engine.rollouts) for engine in resumed.engines] == [2, 1]  # interrupted after step 3
    before = resumed["tokens"][3]
    assert resumed["tokens"] == sorted(resumed["tokens"])
    assert resumed["time/elapsed"] == [3.0, 3.25, 6.25, 0.25, 3.25, 3.5]
    new = [tokens - before for tokens in resumed["tokens"][3:]]
    assert new[0] == 0 < new[1]
    assert resumed["time/tokens_per_second"][3:] == pytest.approx([0.0, new[1] / 3.25, new[2] / 3.5])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step 5/6"))
    assert line.endswith("0:00:02 left")  # half of the 3.25 s that this part's two steps have taken


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
    assert not list((played.folder / "eval" / "partial").iterdir())  # nothing is left of what was done of them
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


def test_without_a_limit_of_its_own_an_evaluation_has_the_rollout_s(tmp_path: Path) -> None:
    options = {"evaluation__max_new_tokens": "null", "rollout__max_new_tokens": 33, "steps": 1}
    run = play(tmp_path, "unlimited", **options)
    assert {sampling.max_new_tokens for _, _, sampling in run.engines[0].calls} == {33}


def test_tasks_are_drawn_by_their_weights_and_each_rollout_is_split_anew(tmp_path: Path) -> None:
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
    # Those that would not have begun with `<think>` by themselves do now, too.
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
