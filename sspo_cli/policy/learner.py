"""One optimizer step on a minibatch: J = mean over completions of S_i · Â_i, whatever the split into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sspo_cli.config import LearningOptions
from sspo_cli.objectives import Diagnostics, Objective
from sspo_cli.policy.batch import Batch
from sspo_cli.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Learned:
    """What a minibatch's forward passes told.

    metrics        the step's, but for the rewards
    old_logprobs   [B, T] of the minibatch
    token_weights  [B, T] w of every token, 0 where the mask is
    histogram      of the weights, see `Diagnostics.histogram`
    """

    metrics: dict[str, float]
    old_logprobs: Tensor
    token_weights: Tensor
    histogram: dict[str, Any]


def accumulate_gradient(
    policy: Policy,
    objective: Objective,
    minibatch: Batch,
    options: LearningOptions,
    temperature: float,
    on_policy: bool,
) -> Learned:
    """Adds the gradient of −J to the parameters.

    `on_policy` says that the policy still is the behaviour policy: old_logprobs are then the current ones, so that ρ = 1
    exactly and no forward pass is spent on them; otherwise they are the minibatch's own.
    """
    old_logprobs, token_weights = minibatch.old_logprobs.clone(), torch.zeros(minibatch.mask.shape)
    diagnostics = Diagnostics()
    loss, entropies, mismatches = 0.0, [], []
    for rows, micro in minibatch.micro_batches(options.token_budget, policy.shares_prompts):
        micro = micro.to(policy.device)
        logprobs, entropy = policy.logprobs(micro, temperature)
        old = logprobs.detach() if on_policy else micro.old_logprobs
        mismatch = torch.where(micro.mask, old - micro.sampling_logprobs, 0.0)
        advantages = micro.advantages
        if options.importance_cap is not None:
            advantages = advantages * mismatch.sum(dim=1).exp().clamp(max=options.importance_cap)

        log_ratio = logprobs - old
        weights = objective.weights(log_ratio, advantages, micro.mask)
        micro_loss = -(weights * advantages).sum() / len(minibatch)
        micro_loss.backward()

        loss += micro_loss.item()
        old_logprobs[rows, : old.shape[1]] = old.cpu()
        entropies.append(entropy[micro.mask].cpu())
        mismatches.append(mismatch[micro.mask].abs().cpu())
        micro_weights = objective.token_weights(log_ratio.detach(), advantages, micro.mask)
        token_weights[rows, : micro_weights.shape[1]] = micro_weights.cpu()
        diagnostics.add(log_ratio.detach(), advantages, micro.mask, micro_weights)

    entropy, mismatch = torch.cat(entropies), torch.cat(mismatches)
    metrics = {"policy/loss": loss, **diagnostics.summary()}
    if len(entropy):
        metrics["policy/entropy"] = entropy.mean().item()
        metrics["sampler/mismatch_mean"] = mismatch.mean().item()
        metrics["sampler/mismatch_max"] = mismatch.max().item()
    return Learned(metrics, old_logprobs, token_weights, diagnostics.histogram())


@torch.no_grad()
def fill_old_logprobs(
    policy: Policy, batch: Batch, minibatches: Sequence[Tensor], token_budget: int, temperature: float
) -> None:
    """Writes the current policy's log-probabilities of those minibatches' rows into `batch.old_logprobs`, in place."""
    for rows in minibatches:
        for picked, micro in batch.select(rows).micro_batches(token_budget, policy.shares_prompts):
            logprobs, _ = policy.logprobs(micro.to(policy.device), temperature)
            batch.old_logprobs[rows[picked], : logprobs.shape[1]] = logprobs.cpu()


def reward_metrics(minibatch: Batch, group_size: int) -> dict[str, float]:
    """Of the minibatch's own completions; `groups/equal_reward` is the share of groups that teach nothing."""
    answer, form = minibatch.answer_rewards, minibatch.format_rewards
    total = answer + form
    groups = total.view(-1, group_size)
    return {
        "reward/mean": total.mean().item(),
        "reward/answer": answer.mean().item(),
        "reward/format": form.mean().item(),
        "reward/std": groups.std(dim=1).mean().item(),
        "groups/equal_reward": (groups.amax(dim=1) == groups.amin(dim=1)).float().mean().item(),
        "completions/length": minibatch.lengths.float().mean().item(),
        "completions/truncated": minibatch.truncated.float().mean().item(),
    }
