"""THE loop: sample a rollout batch from the policy, grade it, learn from it in μ optimizer steps, repeat."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError
from sspo_cli.evaluation.benchmark import (
    Benchmark,
    Conditions,
    evaluate,
    fingerprint,
    grade_groups,
    partial_path,
    record,
)
from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.objectives import Objective, group_advantages
from sspo_cli.policy.batch import Batch, collate, minibatch_rows
from sspo_cli.policy.checkpoint import keep_last, save_checkpoint
from sspo_cli.policy.learner import Learned, accumulate_gradient, fill_old_logprobs, reward_metrics
from sspo_cli.policy.model import Policy
from sspo_cli.policy.optimizer import guarded_step, scheduled_rate
from sspo_cli.policy.pieces import token_pieces
from sspo_cli.rewards import AnswerChecker, extract_answer
from sspo_cli.rollout.engine import Engine, Sampling
from sspo_cli.seeds import derive_seed
from sspo_cli.tasks.mixture import problem_stream
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.tracker import Tracker
from sspo_cli.types import Completion, Group, Prompt


@dataclass
class RunState:
    """Where a run is: beside the weights and the optimizer, all that a resumed one needs to go on as if never stopped.

    step       optimizer steps done, skipped ones included
    rollout    rollout batches used up
    position   minibatches of the current rollout batch that are used up
    batch      the current rollout batch; None until it is sampled
    kept       by their row in it, the completions that go into `completions.jsonl` once they are learned from
    tokens     sampled so far
    timeouts   answer checks that ran out of time so far
    skipped    steps left out for a NaN loss or gradient so far
    bad_steps  how many of them in a row, just now
    """

    step: int = 0
    rollout: int = 0
    position: int = 0
    batch: Batch | None = None
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
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
        probe: dict[str, float] = {}
        plan_seed = derive_seed(options.seed, "minibatches", state.rollout)
        plan = minibatch_rows(prompts_per_rollout, options.rollout.group_size, learning.mu, learning.epochs, plan_seed)
        if state.batch is None:
            state.batch, probe = sample_batch(run, list(islice(upcoming, prompts_per_rollout)), plan, clock)
            with clock.phase("learning"):
                # Not for the first minibatch: it is learned from by the very policy that sampled it.
                fill_old_logprobs(
                    run.policy, state.batch, plan[1 : learning.mu], learning.token_budget, options.rollout.temperature
                )

        with clock.phase("learning"):
            metrics, learned = take_step(run, plan[state.position])
        epoch, minibatch = divmod(state.position, learning.mu)
        position = {"minibatch": minibatch + 1, "epoch": epoch + 1}
        kept = [state.kept[row] for row in rows_kept(plan[state.position], minibatch, options)]
        state.step += 1
        state.position += 1
        run.tracker.completions(
            state.step,
            [
                {"rollout": state.rollout, **position, **row, "weights": rounded(weights[: row["tokens"]])}
                for row, weights in zip(kept, learned.token_weights, strict=False)
            ],
        )
        run.tracker.weights(state.step, {**position, **learned.histogram})
        run.tracker.log(
            state.step, {"rollout": state.rollout, **position, **metrics, **probe, **clock.metrics(state.tokens)}
        )
        if state.position == len(plan):
            state.rollout, state.position, state.batch, state.kept = state.rollout + 1, 0, None, {}

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


def sample_batch(
    run: Run, prompts: Sequence[Prompt], plan: Sequence[Tensor], clock: Clock
) -> tuple[Batch, dict[str, float]]:
    """The next rollout batch: sampled by the behaviour policy, which now is the policy, and graded; and the metrics of
    the engine's sync."""
    options, state = run.options, run.state

    def check(prompt: int, completion: Completion) -> None:
        """Begins the check of its answer while others are still sampled; the grading then finds the verdict."""
        text, gold = prompts[prompt].opening + completion.text, prompts[prompt].problem.answer
        run.checker.submit(extract_answer(text, [gold]), gold)

    with clock.phase("sampling"):
        probe = run.engine.sync(run.policy)
        sampling = Sampling(
            temperature=options.rollout.temperature,
            max_new_tokens=options.rollout.max_new_tokens,
            seed=derive_seed(options.seed, "sampling", state.rollout),
        )
        completions = run.engine.generate([p.token_ids for p in prompts], options.rollout.group_size, sampling, check)
        run.engine.sleep()
    with clock.phase("grading"):
        groups = grade_groups(prompts, completions, run.checker)
    rewards = torch.tensor([[reward.total for reward in group.rewards] for group in groups])
    advantages = group_advantages(rewards, options.learning.std)
    state.tokens += sum(len(c.token_ids) for group in groups for c in group.completions)
    state.timeouts += sum(reward.status == "timeout" for group in groups for reward in group.rewards)
    kept = {row for place, rows in enumerate(plan) for row in rows_kept(rows, place % options.learning.mu, options)}
    state.kept = {row: completion_row(groups, advantages, row, run.policy.tokenizer) for row in sorted(kept)}
    return collate(groups, advantages, mask_truncated=options.learning.mask_truncated), probe


def rows_kept(rows: Tensor, minibatch: int, options: RunOptions) -> list[int]:
    """Of a minibatch's rows those that go into `completions.jsonl`: the first group of the first minibatch and the first
    group of the last, the stalest; where these are the same, two groups of it."""
    groups = (minibatch == 0) + (minibatch == options.learning.mu - 1)
    return rows[: groups * options.rollout.group_size].tolist()


def completion_row(groups: Sequence[Group], advantages: Tensor, row: int, tokenizer: Any) -> dict[str, Any]:
    """A graded completion of the rollout batch, by its row there, as an object for `completions.jsonl`."""
    place, number = divmod(row, advantages.shape[1])
    group = groups[place]
    completion, reward = group.completions[number], group.rewards[number]
    written = completion.token_ids if completion.truncated else completion.token_ids[:-1]
    pieces = [
        *token_pieces(tokenizer, written),
        *([] if completion.truncated else [""]),
    ]  # the end of the sequence is no text
    return {
        "problem": group.prompt.problem.id,
        "prompt": group.prompt.text,
        "gold": group.prompt.problem.answer,
        "completion": group.prompt.opening + completion.text,
        "extracted": reward.extracted,
        "r_answer": reward.answer,
        "r_format": reward.format,
        "advantage": round(advantages[place, number].item(), 6),
        "tokens": len(completion.token_ids),
        "truncated": completion.truncated,
        "status": reward.status,
        "pieces": pieces,
    }


def rounded(weights: Tensor) -> list[float]:
    return [round(weight, 3) for weight in weights.tolist()]


def take_step(run: Run, rows: Tensor) -> tuple[dict[str, float], Learned]:
    """One optimizer step on those rows of the rollout batch, its metrics, and what the forward passes told."""
    options, state = run.options, run.state
    assert state.batch is not None
    minibatch = state.batch.select(rows)
    on_policy = state.position == 0
    learned = accumulate_gradient(
        run.policy, run.objective, minibatch, options.learning, options.rollout.temperature, on_policy
    )
    state.batch.old_logprobs[rows, : learned.old_logprobs.shape[1]] = learned.old_logprobs
    rate = scheduled_rate(options.optimizer, state.step, options.steps)
    rounding = derive_seed(options.seed, "rounding", state.step)
    loss, limit = learned.metrics["policy/loss"], options.optimizer.max_grad_norm
    norm, taken = guarded_step(run.optimizer, loss, rate, limit, rounding)
    state.skipped += not taken
    state.bad_steps = 0 if taken else state.bad_steps + 1
    metrics = {
        **reward_metrics(minibatch, options.rollout.group_size),
        **learned.metrics,
        "policy/grad_norm": norm,
        "policy/skipped": state.skipped,
        "optimizer/learning_rate": rate,
        "grading/timeouts": state.timeouts,
        "tokens": state.tokens,
    }
    return metrics, learned


def measure_if_due(run: Run) -> None:
    """Pass@1 on every benchmark, into the run folder and the tracker: before the first step, after the last, and at the
    steps between that the options say; not what a run that is resumed here has measured already.

    With validation problems, each measured step has a checkpoint, and the best of them so far is marked and kept.
    Raises Interrupted when asked to stop; the state is saved before, and what is done of the measurement.
    """
    options, step = run.options, run.state.step
    every = options.evaluation.every
    if step not in (0, options.steps) and not (every and step % every == 0):
        return
    conditions = Conditions.of(options)
    rows = run.folder.evaluations()
    measured = {row["benchmark"] for row in rows if row["step"] == step and conditions.matches(row, "prompt")}
    if options.evaluation.validation and not checkpoint_path(run).exists():
        save(run)

    def advance(problems: int) -> None:
        run.tracker.advance(problems)
        if run.interruption.requested:
            save(run)
            raise Interrupted

    if benchmarks := [benchmark for benchmark in run.benchmarks if benchmark.name not in measured]:
        run.engine.sync(run.policy)
        model = fingerprint(run.policy)
    for benchmark in benchmarks:
        partial = partial_path(run.folder.eval, benchmark, conditions, model)
        with run.tracker.stage(f"evaluating on {benchmark.name}", len(benchmark.prompts)):
            answers = evaluate(run.engine, benchmark, run.checker, conditions, advance, partial)
        summary = record(run.folder.eval, answers, benchmark, conditions, step, f"step-{step}")
        partial.unlink()
        run.tracker.evaluation(step, benchmark.name, summary)
    run.engine.sleep()
    keep_last(run.folder.checkpoints, options.checkpoint.keep, run.folder.choose_best())


def save(run: Run) -> None:
    """A checkpoint of the weights, the optimizer and the progress, the rest of the rollout batch included."""
    state = {"run": run.state.state_dict(), "optimizer": run.optimizer.state_dict()}
    save_checkpoint(checkpoint_path(run), run.policy, state)
    keep_last(run.folder.checkpoints, run.options.checkpoint.keep, run.folder.choose_best())


def checkpoint_path(run: Run) -> Path:
    return run.folder.checkpoints / f"step-{run.state.step}"
