"""Small runs with a sampler of known completions and a clock of known times."""

import json
import math
import re
import signal
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
from sspo_cli.interruption import Interrupted
from sspo_cli.policy.model import Policy
from sspo_cli.rewards import AnswerChecker, Verdict
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.types import Completion

# The G = 4 completions by the prompt's place in the rollout, modulo 4, and their rewards r_answer and r_format. {gold}
# is the right answer and {wrong} is not; the check of `never` times out. A completion is truncated if it ends in ….
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
    """Clock whose seconds pass only when a test adds them."""

    now: float = 100.0


@dataclass
class ScriptedEngine:
    """Engine that samples `TEXTS`.

    A sync takes 1 s, a rollout 2 s, an evaluation 5 s, grading 0.5 s and a forward pass 0.25 s. The engine's
    log-probabilities are the policy's at the rollout's temperature, plus 0.5 for a first token and minus 0.1 for the
    others.

    stop_at_rollout  the rollout, counted from 1, in which Ctrl-C is pressed
    broken_rollout   the rollout whose log-probabilities are NaN
    opening          the beginning of each completion that the chat template has written
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
        self.clock.now += 1.0
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
    """A finished run: its folder, its engines (two after an interruption) and its metrics by name.

    updates  learning rate, betas, weight decay and largest norm that AdamW was given in each step that was taken
    process  the time limit of answer checks in seconds, and the number of threads
    """

    folder: Path
    engines: list[ScriptedEngine] = field(default_factory=list)
    updates: list[tuple[float, tuple[float, float], float, float]] = field(default_factory=list)
    process: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> list[Any]:
        return [row.get(name) for row in rows(self.folder / "metrics.jsonl")]

    def summary(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "eval" / "summary.json").read_text())

    def kept(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        """Yield the rows of `completions.jsonl`, each with its prompt's place in the rollout and its number in the group."""
        for number, row in enumerate(rows(self.folder / "completions.jsonl")):
            questions, group_size, _ = self.engines[0].rollouts[row["rollout"]]
            yield row, questions.index(row["problem"]), number % group_size


def play(runs: Path, name: str, script: dict[str, Any] | None = None, **options: Any) -> Played:
    """Train with the scripted engine, whose fields `script` changes, and resume the run if it was interrupted."""
    clock, played = Clock(), Played(runs / name)

    def open_engine(rollout: Any, policy: Policy, named: bool) -> ScriptedEngine:
        played.engines.append(ScriptedEngine(policy, clock, **({} if played.engines else script or {})))
        return played.engines[-1]

    values = {**OPTIONS, **{key.replace("__", "."): value for key, value in options.items()}}
    config = load_config(overrides=[f"{key}={value}" for key, value in values.items()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_engine", open_engine)
        record_options(patch, played)
        script_times(patch, clock)
        try:
            session.start_run(config, played.folder, [])
        except Interrupted:
            session.resume_run(played.folder, None, [])
    return played


def record_options(patch: pytest.MonkeyPatch, played: Played) -> None:
    """Record in `played` the options that reach the optimizer, the answer checker and torch's threads."""
    step, clip, open_checker = torch.optim.AdamW.step, torch.nn.utils.clip_grads_with_norm_, AnswerChecker.__init__
    max_norms = []

    def recording_clip(parameters: Any, max_norm: float, *arguments: Any) -> None:
        max_norms.append(max_norm)
        clip(parameters, max_norm, *arguments)

    def recording_step(self: torch.optim.AdamW) -> None:
        matrices = self.param_groups[0]
        played.updates.append((matrices["lr"], matrices["betas"], matrices["weight_decay"], max_norms[-1]))
        step(self)

    def recording_checker(self: AnswerChecker, *, timeout: float) -> None:
        played.process["timeout"] = timeout
        open_checker(self, timeout=timeout)

    patch.setattr(torch.nn.utils, "clip_grads_with_norm_", recording_clip)
    patch.setattr(torch.optim.AdamW, "step", recording_step)
    patch.setattr(AnswerChecker, "__init__", recording_checker)
    patch.setattr(torch, "set_num_threads", lambda threads: played.process.update(threads=threads))


def script_times(patch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Take all times from `clock`: grading takes 0.5 s and a forward pass 0.25 s. The check of `never` times out."""
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

    patch.setattr("time.perf_counter", lambda: clock.now)
    patch.setattr(AnswerChecker, "submit", submit_or_time_out)
    patch.setattr(AnswerChecker, "check", slow_check)
    patch.setattr(Policy, "logprobs", slow_logprobs)


def sampled_tokens(played: Played, rollout: int) -> int:
    """Return the number of sampled tokens of a rollout.

    Each character or tag is a token, and each completion that is not truncated has one more for its end.
    """
    questions, _, _ = played.engines[0].rollouts[rollout]
    total = 0
    for place, question in enumerate(questions):
        for text in TEXTS[place]:
            gold = eval(question)
            written = re.sub(r"</?(think|answer)>", "T", text.format(gold=gold, wrong=gold + 1))
            total += len(written.removesuffix("…")) + (not written.endswith("…"))
    return total
