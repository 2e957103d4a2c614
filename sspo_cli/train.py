"""THE loop: sample a rollout batch from the policy, grade it, learn from it in μ optimizer steps, repeat."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.evaluate import Benchmark, evaluate, evaluation_tokens, grade_groups, record
from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.objectives import Objective, group_advantages
from sspo_cli.policy.batch import Batch, collate, minibatch_rows
from sspo_cli.policy.checkpoint import keep_last, save_checkpoint
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs, reward_metrics
from sspo_cli.policy.model import Policy
from sspo_cli.policy.optimizer import guarded_step, scheduled_rate
from sspo_cli.rewards import AnswerChecker, extract_answer
from sspo_cli.rollout.engine import Engine, Sampling
from sspo_cli.seeds import derive_seed
from sspo_cli.tasks.mixture import problem_stream
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.tracker import Tracker
from sspo_cli.types import Completion, Group, Prompt

GROUPS_KEPT = 2  # of a rollout batch, in completions.jsonl


@dataclass
class RunState:
    """Where a run is: beside the weights and the optimizer, all that a resumed one needs to go on as if never stopped.

    step       optimizer steps done, skipped ones included
    rollout    rollout batches used up
    position   minibatches of the current rollout batch that are used up
    batch      the current rollout batch; None until it is sampled
    tokens     sampled so far
    timeouts   answer checks that ran out of time so far
    skipped    steps left out for a NaN loss or gradient so far
    bad_steps  how many of them in a row, just now
    """

    step: int = 0
    rollout: int = 0
    position: int = 0
    batch: Batch | None = None
    tokens: int = 0
    timeouts: int = 0
    skipped: int = 0
    bad_steps: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "batch": self.batch and self.batch.state_dict()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "RunState":
        return cls(**{**state, "batch": state["batch"] and Batch(**state["batch"])})


class Clock:
    """Wall time of the steps, by phase, and of this process's part of the run; evaluations and checkpoints are in neither
    a step's time nor the speed."""

    def __init__(self, tokens: int) -> None:
        self._began = self._last = time.perf_counter()
        self._busy = 0.0
        self._tokens_before = tokens
        self._phases: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._phases[name] += time.perf_counter() - start

    def metrics(self, tokens: int) -> dict[str, float]:
        """Seconds of the step that ends now; sampled tokens a second over all steps of the part."""
        now = time.perf_counter()
        step = now - self._last
        self._busy += step
        phases, self._phases = self._phases, defaultdict(float)
        return {
            **{f"time/{name}": phases[name] for name in ("sampling", "grading", "learning")},
            "time/step": step,
            "time/elapsed": now - self._began,
            "time/tokens_per_second": (tokens - self._tokens_before) / self._busy,
        }

    def resume(self) -> None:
        """The next step begins now."""
        self._last = time.perf_counter()


@dataclass
class Run:
    """What the loop works with."""

    options: RunOptions
    folder: RunFolder
    policy: Policy
    objective: Objective
    optimizer: torch.optim.Optimizer
    engine: Engine
    prompts: Sequence[Sequence[Prompt]]  # of each task
    benchmarks: Sequence[Benchmark]
    checker: AnswerChecker
    tracker: Tracker
    interruption: Interruption
    state: RunState = field(default_factory=RunState)


def train(run: Run) -> None:
    """Takes optimizer steps until there are `options.steps`.

    Raises Interrupted when asked to stop, and UserError after `optimizer.max_bad_steps` bad steps in a row; the state is
    saved before. Raises UserError where a file cannot be written.
    """
    options, state = run.options, run.state
    learning, prompts_per_rollout = options.learning, options.rollout.prompts
    weights = [task.weight for task in options.tasks]
    drawn = (state.rollout + (state.batch is not None)) * prompts_per_rollout
    upcoming = islice(problem_stream(run.prompts, weights, derive_seed(options.seed, "problems")), drawn, None)
    measure_if_due(run)
    clock = Clock(state.tokens)

    while state.step < options.steps:
        plan_seed = derive_seed(options.seed, "minibatches", state.rollout)
        plan = minibatch_rows(prompts_per_rollout, options.rollout.group_size, learning.mu, learning.epochs, plan_seed)
        if state.batch is None:
            state.batch = sample_batch(run, list(islice(upcoming, prompts_per_rollout)), clock)
            with clock.phase("learning"):
                # Not for the first minibatch: it is learned from by the very policy that sampled it.
                fill_old_logprobs(
                    run.policy, state.batch, plan[1 : learning.mu], learning.token_budget, options.rollout.temperature
                )

        with clock.phase("learning"):
            metrics = take_step(run, plan[state.position])
        epoch, minibatch = divmod(state.position, learning.mu)
        position = {"rollout": state.rollout, "minibatch": minibatch + 1, "epoch": epoch + 1}
        state.step += 1
        state.position += 1
        if state.position == len(plan):
            state.rollout, state.position, state.batch = state.rollout + 1, 0, None
        run.tracker.log(state.step, {**position, **metrics, **clock.metrics(state.tokens)})

        done = state.step >= options.steps
        gave_up = state.bad_steps >= options.optimizer.max_bad_steps
        stopping = run.interruption.requested
        if done or gave_up or stopping or state.step % options.checkpoint.every == 0:
            save(run)
        if gave_up:
            raise UserError(
                f"the loss or its gradient was not finite in {state.bad_steps} steps in a row, at step {state.step}; "
                "the state is saved; lower optimizer.learning_rate and start anew"
            )
        if stopping and not done:
            raise Interrupted
        measure_if_due(run)
        clock.resume()


def sample_batch(run: Run, prompts: Sequence[Prompt], clock: Clock) -> Batch:
    """The next rollout batch: sampled by the behaviour policy, which now is the policy, and graded."""
    options, state = run.options, run.state

    def check(prompt: int, completion: Completion) -> None:
        """Begins the check of its answer while others are still sampled; the grading then finds the verdict."""
        text = prompts[prompt].opening + completion.text
        run.checker.submit(extract_answer(text), prompts[prompt].problem.answer)

    with clock.phase("sampling"):
        run.engine.sync(run.policy)
        sampling = Sampling(
            temperature=options.rollout.temperature,
            max_new_tokens=options.rollout.max_new_tokens,
            seed=derive_seed(options.seed, "sampling", state.rollout),
        )
        completions = run.engine.generate([p.token_ids for p in prompts], options.rollout.group_size, sampling, check)
    with clock.phase("grading"):
        groups = grade_groups(prompts, completions, run.checker)
    rewards = torch.tensor([[reward.total for reward in group.rewards] for group in groups])
    advantages = group_advantages(rewards, options.learning.std)
    state.tokens += sum(len(c.token_ids) for group in groups for c in group.completions)
    state.timeouts += sum(reward.status == "timeout" for group in groups for reward in group.rewards)
    run.tracker.completions(state.step + 1, completion_rows(groups[:GROUPS_KEPT], advantages, state.rollout))
    return collate(groups, advantages, mask_truncated=options.learning.mask_truncated)


def take_step(run: Run, rows: Tensor) -> dict[str, float]:
    """One optimizer step on those rows of the rollout batch, and its metrics."""
    options, state = run.options, run.state
    assert state.batch is not None
    minibatch = state.batch.select(rows)
    on_policy = state.position == 0
    metrics, old_logprobs = accumulate_gradient(
        run.policy, run.objective, minibatch, options.learning, options.rollout.temperature, on_policy
    )
    state.batch.old_logprobs[rows, : old_logprobs.shape[1]] = old_logprobs
    rate = scheduled_rate(options.optimizer, state.step, options.steps)
    norm, taken = guarded_step(run.optimizer, metrics["policy/loss"], rate, options.optimizer.max_grad_norm)
    state.skipped += not taken
    state.bad_steps = 0 if taken else state.bad_steps + 1
    return {
        **reward_metrics(minibatch, options.rollout.group_size),
        **metrics,
        "policy/grad_norm": norm,
        "policy/skipped": state.skipped,
        "optimizer/learning_rate": rate,
        "grading/timeouts": state.timeouts,
        "tokens": state.tokens,
    }


def measure_if_due(run: Run) -> None:
    """Greedy Pass@1 on every benchmark, into the run folder and the tracker: before the first step, after the last, and at
    the steps between that the options say; not what a run that is resumed here has measured already."""
    options, step = run.options, run.state.step
    every = options.evaluation.every
    if step not in (0, options.steps) and not (every and step % every == 0):
        return
    run.engine.sync(run.policy)
    measured = {row["benchmark"] for row in run.folder.evaluations() if row["step"] == step}
    for benchmark in run.benchmarks:
        if benchmark.name in measured:
            continue
        max_new_tokens = evaluation_tokens(options)
        with run.tracker.stage(f"evaluating on {benchmark.name}", len(benchmark.prompts)):
            groups = evaluate(run.engine, benchmark, run.checker, max_new_tokens, run.tracker.advance)
        settings = {"max_new_tokens": max_new_tokens, "prompt": options.prompt, "checkpoint": f"step-{step}"}
        run.tracker.evaluation(step, benchmark.name, record(run.folder.eval, groups, benchmark, step, settings))


def save(run: Run) -> None:
    """A checkpoint of the weights, the optimizer and the progress, the rest of the rollout batch included."""
    state = {"run": run.state.state_dict(), "optimizer": run.optimizer.state_dict()}
    save_checkpoint(run.folder.checkpoints / f"step-{run.state.step}", run.policy, state)
    keep_last(run.folder.checkpoints, run.options.checkpoint.keep)


def completion_rows(groups: Sequence[Group], advantages: Tensor, rollout: int) -> list[dict[str, Any]]:
    """Graded groups as objects for `completions.jsonl`."""
    return [
        {
            "rollout": rollout,
            "problem": group.prompt.problem.id,
            "prompt": group.prompt.text,
            "gold": group.prompt.problem.answer,
            "completion": group.prompt.opening + completion.text,
            "extracted": reward.extracted,
            "r_answer": reward.answer,
            "r_format": reward.format,
            "advantage": round(advantage, 6),
            "tokens": len(completion.token_ids),
            "truncated": completion.truncated,
        }
        for group, row in zip(groups, advantages.tolist(), strict=False)
        for completion, reward, advantage in zip(group.completions, group.rewards, row, strict=True)
    ]
