"""The training loop: sample a rollout batch from the policy, grade it, learn from it in μ optimizer steps, repeat."""

from collections import deque
from itertools import islice

import torch

from sspo_cli.objectives import group_advantages, weight_histogram
from sspo_cli.policy.batch import collate, minibatch_rows
from sspo_cli.policy.learner import (
    accumulate_gradient,
    episode_metrics,
    fill_old_logprobs,
    reward_metrics,
    splits_groups_apart,
    step_metrics,
)
from sspo_cli.policy.optimizer import guarded_step, scheduled_rate
from sspo_cli.rollout.episodes import sandbox_metrics
from sspo_cli.rollout.torch_engine import passes_weights
from sspo_cli.run.clock import Clock
from sspo_cli.run.dead import check_learning
from sspo_cli.run.lag import behaviour_policy
from sspo_cli.run.measuring import measure_if_due
from sspo_cli.run.recording import kept_completions, kept_rows, with_weights
from sspo_cli.run.reference import fill_reference
from sspo_cli.run.sampling import sample_batch
from sspo_cli.run.saving import keep_rollout, save_if_due, saved_on_failure, take_kept_rollout
from sspo_cli.run.state import Run
from sspo_cli.run.telemetry import Telemetry
from sspo_cli.seeds import derive_seed
from sspo_cli.tasks.mixture import problem_stream


def train(run: Run) -> None:
    """Take optimizer steps until `options.steps` are done.

    Raises Interrupted if a stop is requested, and UserError if `optimizer.max_bad_steps` steps in a row were skipped or if
    nothing is learned; the state is saved first. Also raises UserError if a file cannot be written.
    """
    options, state = run.options, run.state
    rollout, learning, seed = options.rollout, options.learning, options.seed
    task_weights = [task.weight for task in options.tasks]
    drawn = (state.rollout + (state.batch is not None)) * rollout.prompts + state.extra
    upcoming = islice(problem_stream(run.prompts, task_weights, derive_seed(seed, "problems")), drawn, None)
    measure_if_due(run)
    has_phases = {"sync": passes_weights(run.engine), "environment": bool(run.stage.environments)}
    clock = Clock(state.tokens, [name for name, has_phase in has_phases.items() if has_phase])
    telemetry = Telemetry(run.policy, options.model)

    while state.step < options.steps:
        plan_seed = derive_seed(seed, "minibatches", state.rollout)
        plan = minibatch_rows(rollout.prompts, rollout.group_size, learning.mu, learning.epochs, plan_seed)
        sync_metrics: dict[str, float] = {}

        # Sample and grade a rollout batch. The current policy becomes the behaviour policy.
        if state.batch is None:
            extra = state.extra
            sync_metrics = take_kept_rollout(run)  # stored, because programs may answer differently when they run again
            if state.batch is not None:
                deque(islice(upcoming, rollout.prompts + state.extra - extra), maxlen=0)  # its prompts are used up
        if state.batch is None:
            with saved_on_failure(run), behaviour_policy(run):
                with clock.phase("sync"):
                    sync_metrics = run.engine.sync(run.policy)
                groups, graded = sample_batch(run, upcoming, clock, telemetry)
                if rollout.equal_groups == "drop":
                    sync_metrics["groups/sampled"] = len(graded)
                rewards = torch.tensor([[reward.total for reward in group.rewards] for group in groups])
                advantages = group_advantages(rewards, learning.std)
                state.extra += len(graded) - len(groups)
                state.tokens += sum(completion.own_tokens for group in graded for completion in group.completions)
                state.timeouts += sum(reward.status == "timeout" for group in graded for reward in group.rewards)
                state.kept = kept_completions(groups, advantages, plan, options, run.policy.tokenizer)
                state.batch = collate(groups, advantages, mask_truncated=learning.mask_truncated)
                with clock.phase("learning"):
                    # Without a lag, the first minibatch is skipped: the policy that sampled it has not changed, so ρ = 1 exactly.
                    later = plan[0 if rollout.lag else 1 : learning.mu]
                    apart = splits_groups_apart(run.policy, learning)
                    fill_old_logprobs(run.policy, state.batch, later, learning.token_budget, rollout.temperature, apart)
                    fill_reference(run, plan[: learning.mu])
            check_learning(run, groups)
            keep_rollout(run, sync_metrics)

        # Take one optimizer step on a minibatch; it is skipped if the loss or the gradient is not finite.
        rows, on_policy = plan[state.position], state.position == 0 and not rollout.lag
        with clock.phase("learning"):
            minibatch = state.batch.select(rows)
            factors = run.objective.factors(minibatch.mask.sum(dim=1))
            result = accumulate_gradient(
                run.policy, run.objective, minibatch, factors, learning, rollout.temperature, on_policy
            )
            state.batch.old_logprobs[rows, : result.old_logprobs.shape[1]] = result.old_logprobs
            if on_policy:
                state.batch.old_entropy[rows, : result.entropy.shape[1]] = result.entropy
                state.batch.rerouted[rows, : result.rerouted.shape[1]] = result.rerouted
            learned = step_metrics(minibatch, result, learning)
            rate = scheduled_rate(options.optimizer, state.step, options.steps)
            rounding_seed = derive_seed(seed, "rounding", state.step)
            grad_norm, taken = guarded_step(
                run.optimizer, learned["policy/loss"], rate, options.optimizer.max_grad_norm, rounding_seed
            )
        state.skipped += not taken
        state.bad_steps = 0 if taken else state.bad_steps + 1

        # Record the step.
        epoch, place = divmod(state.position, learning.mu)
        position = {"minibatch": place + 1, "epoch": epoch + 1}
        kept = [{"rollout": state.rollout, **position, **state.kept[row]} for row in kept_rows(rows, place, options)]
        metrics = {
            "rollout": state.rollout,
            **position,
            **reward_metrics(minibatch, rollout.group_size, options.reward.scoring),
            **episode_metrics(minibatch),
            **learned,
            "policy/grad_norm": grad_norm,
            "policy/skipped": state.skipped,
            "optimizer/learning_rate": rate,
            "grading/timeouts": state.timeouts,
            **sandbox_metrics(run.stage),
            "tokens": state.tokens,
            **sync_metrics,
        }
        histogram = weight_histogram(result.token_weights, result.advantages, minibatch.mask)
        state.step += 1
        state.position += 1
        run.tracker.completions(state.step, with_weights(kept, result.token_weights))
        run.tracker.weights(state.step, {**position, **histogram})
        times = clock.metrics(state.tokens)
        run.tracker.log(state.step, {**metrics, **times, **telemetry.metrics(minibatch, times)})
        if state.position == len(plan):
            state.rollout, state.position, state.batch, state.kept = state.rollout + 1, 0, None, {}

        save_if_due(run)
        measure_if_due(run)
        clock.resume()
