"""One optimizer step on a minibatch: J = Σ_i c_i · S_i · Â_i, whatever the split into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sspo_cli import ranks
from sspo_cli.config import LearningOptions
from sspo_cli.objectives import Objective, ratio_metrics
from sspo_cli.policy.batch import OUTCOME, Batch
from sspo_cli.policy.model import Policy
from sspo_cli.rewards import PAPER, Scoring


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the forward passes of a minibatch gave, row by row, on the CPU; from it all metrics of the step are computed.

    objective      [B]     c_i · S_i · Â_i, 0 for a completion that is masked out
    advantages     [B]     Â, times the bounded ratio to the sampler if completions are weighed by it
    old_logprobs   [B, T]  by the behaviour policy
    log_ratio      [B, T]  d
    token_weights  [B, T]  w
    entropy        [B, T]  of the policy, in nats

    Tensors [B, T] are 0 outside the mask.
    """

    objective: Tensor
    advantages: Tensor
    old_logprobs: Tensor
    log_ratio: Tensor
    token_weights: Tensor
    entropy: Tensor


def accumulate_gradient(
    policy: Policy,
    objective: Objective,
    minibatch: Batch,
    factors: Tensor,
    options: LearningOptions,
    temperature: float,
    on_policy: bool,
) -> StepResult:
    """Add the gradient of −J to the parameters.

    `factors` are the c_i of the rows, which depend on all completions of the minibatch, see `Objective.factors`.
    `on_policy` says that the policy still is the behaviour policy: old_logprobs are then the current ones, so that ρ = 1
    exactly and no forward pass is spent on them; otherwise they are the minibatch's own.
    """
    per_row, per_token = minibatch.advantages.shape, minibatch.mask.shape
    shapes = (per_row, per_row, per_token, per_token, per_token, per_token)
    factors = factors.to(policy.device)
    result = StepResult(*(torch.zeros(shape, device=policy.device) for shape in shapes))
    for rows, micro in minibatch.share(options.token_budget, policy.shares_prompts):
        micro = micro.to(policy.device)
        logprobs, entropy = policy.logprobs(micro, temperature)
        old_logprobs = logprobs.detach() if on_policy else micro.old_logprobs
        advantages = micro.advantages
        log_ratio = logprobs - old_logprobs
        if options.importance_cap is not None:
            mismatch = torch.where(micro.mask, old_logprobs - micro.sampling_logprobs, 0.0)
            if options.importance_level == "sequence":
                advantages = advantages * _bounded(mismatch.sum(dim=1).exp(), options)
            else:  # the gradient of each token by its own ratio, whatever becomes of the tokens in the aggregation
                fixed = log_ratio.detach()
                log_ratio = fixed + _bounded(mismatch.exp(), options) * (log_ratio - fixed)
        weights = objective.weights(log_ratio, advantages, micro.mask)
        # A completion that is masked out has no S, and no gradient: it counts 0, as the mean over its tokens does.
        weighted = torch.where(micro.mask.any(dim=1), factors[rows] * weights * advantages, 0.0)
        (-weighted.sum() * ranks.size()).backward()  # of which fully_shard takes the mean over the ranks

        tokens = slice(micro.mask.shape[1])
        result.objective[rows] = weighted.detach()
        result.advantages[rows] = advantages
        result.old_logprobs[rows, tokens] = old_logprobs
        result.log_ratio[rows, tokens] = log_ratio.detach()
        result.token_weights[rows, tokens] = objective.token_weights(log_ratio.detach(), advantages, micro.mask)
        result.entropy[rows, tokens] = entropy
    values = [getattr(result, field.name).cpu() for field in fields(result)]
    ranks.add(*values)  # each row was computed by one of them
    return StepResult(*values)


def _bounded(importance: Tensor, options: LearningOptions) -> Tensor:
    """Bound the ratio of the behaviour policy to the sampler: at most the cap, or 0 beyond it."""
    assert options.importance_cap is not None
    if options.importance_beyond == "mask":
        return importance.masked_fill(importance > options.importance_cap, 0.0)
    return importance.clamp(max=options.importance_cap)


def step_metrics(minibatch: Batch, result: StepResult) -> dict[str, float]:
    """Compute the metrics of a step, except the rewards, the norm and the rate; without any token, only the loss."""
    metrics = {
        "policy/loss": -result.objective.double().sum().item() + 0.0,  # 0 is not to be written as -0
        **ratio_metrics(result.log_ratio, result.advantages, minibatch.mask, result.token_weights),
    }
    if minibatch.mask.any():
        mismatch = (result.old_logprobs - minibatch.sampling_logprobs)[minibatch.mask].abs()
        metrics["policy/entropy"] = result.entropy[minibatch.mask].double().mean().item()
        metrics["sampler/mismatch_mean"] = mismatch.double().mean().item()
        metrics["sampler/mismatch_max"] = mismatch.max().item()
    return metrics


@torch.no_grad()
def fill_old_logprobs(
    policy: Policy, batch: Batch, minibatches: Sequence[Tensor], token_budget: int, temperature: float
) -> None:
    """Write the current policy's log-probabilities of those minibatches' rows into `batch.old_logprobs`, in place."""
    for rows in minibatches:
        minibatch = batch.select(rows)
        old_logprobs = torch.zeros(minibatch.mask.shape)
        for picked, micro in minibatch.share(token_budget, policy.shares_prompts):
            logprobs, _ = policy.logprobs(micro.to(policy.device), temperature)
            old_logprobs[picked, : logprobs.shape[1]] = logprobs.cpu()
        ranks.add(old_logprobs)
        batch.old_logprobs[rows, : old_logprobs.shape[1]] = old_logprobs


def reward_metrics(minibatch: Batch, group_size: int, scoring: Scoring = PAPER) -> dict[str, float]:
    """Compute the rewards of the minibatch's own completions; `groups/equal_reward` is the share that teaches nothing.

    The parts are without their weights.
    """
    groups = minibatch.rewards.view(-1, group_size)
    own = {"reward/own": minibatch.own_rewards.mean().item()} if scoring.function else {}
    return {
        "reward/mean": minibatch.rewards.mean().item(),
        "reward/answer": minibatch.answer_rewards.mean().item(),
        "reward/format": minibatch.format_rewards.mean().item(),
        **own,
        "reward/std": groups.std(dim=1).mean().item(),
        "groups/equal_reward": (groups.amax(dim=1) == groups.amin(dim=1)).float().mean().item(),
        "completions/length": minibatch.own_lengths.float().mean().item(),
        "completions/truncated": minibatch.truncated.float().mean().item(),
    }


def episode_metrics(minibatch: Batch) -> dict[str, float]:
    """Compute the means of what `OUTCOME` names over the minibatch's own episodes; nothing without one."""
    outcomes = minibatch.outcomes[~minibatch.outcomes.isnan().any(dim=1)]
    return (
        {f"episodes/{name}": value for name, value in zip(OUTCOME, outcomes.mean(dim=0).tolist(), strict=True)}
        if len(outcomes)
        else {}
    )
