"""The gradient of a minibatch, J = Σ_i c_i · (S_i · Â_i - β · KL_i), independent of the split into micro-batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sspo_cli import ranks
from sspo_cli.config import LearningOptions
from sspo_cli.objectives import Objective, has_kept_entropy, ratio_metrics, reference_kl
from sspo_cli.policy.batch import OUTCOME, Batch
from sspo_cli.policy.experts import complete_gradients, expert_load
from sspo_cli.policy.model import Policy
from sspo_cli.rewards import PAPER, Scoring


@dataclass(frozen=True, slots=True)
class StepResult:
    """The results of a minibatch's forward passes, row by row, on the CPU. All metrics of the step are computed from these.

    objective      [B]     c_i · (S_i · Â_i - β · KL_i), 0 for a completion that is masked out
    advantages     [B]     Â, times the bounded importance ratio if `importance_level` is `sequence`
    old_logprobs   [B, T]  by the behaviour policy
    log_ratio      [B, T]  d = log ρ
    token_weights  [B, T]  w
    entropy        [B, T]  of the policy, in nats
    kept           [B, T]  True if the token's entropy is close enough to the behaviour policy's for a gradient
    reference_kl   [B]     k3 estimate of the KL divergence from the reference policy; 0 without a KL penalty
    rerouted       [B, T]  share of layers in which the sampler and the behaviour policy chose different experts
    expert_counts  [L, E]  how often the tokens chose each expert of each layer; [0, 0] without a mixture of experts

    Tensors [B, T] are 0 outside the mask.
    """

    objective: Tensor
    advantages: Tensor
    old_logprobs: Tensor
    log_ratio: Tensor
    token_weights: Tensor
    entropy: Tensor
    kept: Tensor
    reference_kl: Tensor
    rerouted: Tensor
    expert_counts: Tensor


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

    factors    [B] c_i, which depend on all completions of the minibatch (see `Objective.factors`)
    on_policy  the policy is still the behaviour policy: its current log-probabilities serve as the old ones, so that ρ = 1
               exactly without another forward pass; otherwise `minibatch.old_logprobs` are used
    """
    per_row, per_token = minibatch.advantages.shape, minibatch.mask.shape
    experts = (policy.routes.layers, policy.routes.experts) if policy.routes else (0, 0)
    shapes = (per_row, per_row, *[per_token] * 5, per_row, per_token, experts)
    factors = factors.to(policy.device)
    result = StepResult(*(torch.zeros(shape, device=policy.device) for shape in shapes))
    apart = splits_groups_apart(policy, options)
    for rows, micro in minibatch.share(options.token_budget, policy.shares_prompts, apart):
        micro = micro.to(policy.device)
        logprobs, entropy = policy.logprobs(micro, temperature)
        old_logprobs = logprobs.detach() if on_policy else micro.old_logprobs
        advantages = micro.advantages
        log_ratio = logprobs - old_logprobs
        if options.importance_cap is not None:
            mismatch = torch.where(micro.mask, old_logprobs - micro.sampling_logprobs, 0.0)
            if options.importance_level == "sequence":
                advantages = advantages * _bounded(mismatch.sum(dim=1).exp(), options)
            else:  # scale each token's gradient by its own ratio, for any aggregation of tokens
                fixed = log_ratio.detach()
                log_ratio = fixed + _bounded(mismatch.exp(), options) * (log_ratio - fixed)
        kept = micro.mask
        if options.entropy_range and not on_policy:
            kept = kept & has_kept_entropy(entropy, micro.old_entropy, options.entropy_range)
            log_ratio = torch.where(kept, log_ratio, log_ratio.detach())
        weights = objective.weights(log_ratio, advantages, micro.mask)
        # A fully masked completion has neither S nor a gradient: it contributes 0.
        gains = weights * advantages
        if options.kl:
            divergence = reference_kl(logprobs, micro.reference_logprobs, micro.mask)
            gains = gains - options.kl * divergence
            result.reference_kl[rows] = divergence.detach()
        weighted = torch.where(micro.mask.any(dim=1), factors[rows] * gains, 0.0)
        (-weighted.sum() * ranks.size()).backward()  # fully_shard averages over the ranks; the factor makes it a sum

        tokens = slice(micro.mask.shape[1])
        result.objective[rows] = weighted.detach()
        result.advantages[rows] = advantages
        result.old_logprobs[rows, tokens] = old_logprobs
        result.log_ratio[rows, tokens] = log_ratio.detach()
        result.token_weights[rows, tokens] = objective.token_weights(log_ratio.detach(), advantages, micro.mask)
        result.entropy[rows, tokens] = entropy
        result.kept[rows, tokens] = kept.float()
        result.rerouted[rows, tokens] = rerouted(policy, micro) if on_policy else micro.rerouted
        if policy.routes:
            result.expert_counts.add_(policy.routes.counts().to(policy.device))
    complete_gradients(policy.model)
    values = [getattr(result, field.name).cpu() for field in fields(result)]
    ranks.add(*values)  # each row was computed by one rank and is 0 on the others
    return StepResult(*values)


def splits_groups_apart(policy: Policy, options: LearningOptions) -> bool:
    """Report whether micro-batches have rows of one group each.

    The experts that a mixture chooses can depend on which rows are computed together. In the first epoch, the micro-batches of
    a step equal those of its old log-probabilities. Later epochs have different minibatches, so only micro-batches of single
    groups are the same in every epoch.
    """
    return policy.mixes_experts and options.epochs > 1


def rerouted(policy: Policy, micro: Batch) -> Tensor:
    """Compare the experts that the policy has just chosen for a micro-batch with the sampler's; see `Batch.rerouted`."""
    shares = torch.zeros_like(micro.rerouted)
    if policy.routes and micro.routes.shape[2]:
        differs = policy.routes.codes().to(micro.routes.device) != micro.routes[micro.mask]
        shares[micro.mask] = differs.float().mean(dim=1)
    return shares


def _bounded(importance: Tensor, options: LearningOptions) -> Tensor:
    """Clamp importance ratios to the cap, or set those above it to 0 (`importance_beyond = mask`)."""
    assert options.importance_cap is not None
    if options.importance_beyond == "mask":
        return importance.masked_fill(importance > options.importance_cap, 0.0)
    return importance.clamp(max=options.importance_cap)


def step_metrics(minibatch: Batch, result: StepResult, options: LearningOptions | None = None) -> dict[str, float]:
    """Return the metrics of a step, except rewards, gradient norm and learning rate.

    policy/reference_kl     mean of k3 over completions; only with a KL penalty
    policy/entropy_clipped  share of tokens without a gradient because their entropy changed; only with an `entropy_range`
    policy/expert_load      see `expert_load`; only for a mixture of experts
    sampler/rerouted_layers, sampler/rerouted_tokens
                            share of (token, layer) pairs with other experts in the sampler than in the behaviour policy, and
                            share of tokens with at least one such layer; only if the sampler records the experts

    If no token is unmasked, metrics of tokens are left out.
    """
    metrics = {
        "policy/loss": -result.objective.double().sum().item() + 0.0,  # turns -0.0 into 0.0
        **ratio_metrics(result.log_ratio, result.advantages, minibatch.mask, result.token_weights),
    }
    if minibatch.mask.any():
        mismatch = (result.old_logprobs - minibatch.sampling_logprobs)[minibatch.mask].abs()
        metrics["policy/entropy"] = result.entropy[minibatch.mask].double().mean().item()
        if options and options.kl:
            metrics["policy/reference_kl"] = result.reference_kl[minibatch.mask.any(dim=1)].double().mean().item()
        if options and options.entropy_range:
            metrics["policy/entropy_clipped"] = 1 - result.kept[minibatch.mask].double().mean().item()
        metrics["sampler/mismatch_mean"] = mismatch.double().mean().item()
        metrics["sampler/mismatch_max"] = mismatch.max().item()
        if result.expert_counts.numel():
            metrics["policy/expert_load"] = expert_load(result.expert_counts)
        if minibatch.routes.shape[2]:
            shares = result.rerouted[minibatch.mask].double()
            metrics["sampler/rerouted_layers"] = shares.mean().item()
            metrics["sampler/rerouted_tokens"] = (shares > 0).double().mean().item()
    return metrics


def fill_old_logprobs(
    policy: Policy,
    batch: Batch,
    minibatches: Sequence[Tensor],
    token_budget: int,
    temperature: float,
    apart: bool = False,
) -> None:
    """Store the current policy's log-probabilities, entropies and routes for the rows in `minibatches` as the batch's old ones.

    apart  each micro-batch has rows of one group alone
    """
    for rows, logprobs, entropy, routes in _computed(policy, batch, minibatches, token_budget, temperature, apart):
        tokens = slice(logprobs.shape[1])
        batch.old_logprobs[rows, tokens] = logprobs
        batch.old_entropy[rows, tokens] = entropy
        batch.rerouted[rows, tokens] = routes


def fill_reference_logprobs(
    policy: Policy,
    batch: Batch,
    minibatches: Sequence[Tensor],
    token_budget: int,
    temperature: float,
    apart: bool = False,
) -> None:
    """Store the log-probabilities by the reference policy `policy` for the rows in `minibatches` in the batch."""
    for rows, logprobs, _, _ in _computed(policy, batch, minibatches, token_budget, temperature, apart):
        batch.reference_logprobs[rows, : logprobs.shape[1]] = logprobs


@torch.no_grad()
def _computed(
    policy: Policy,
    batch: Batch,
    minibatches: Sequence[Tensor],
    token_budget: int,
    temperature: float,
    apart: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield (rows, log-probabilities, entropies, shares of rerouted layers) of every minibatch, on the CPU."""
    for rows in minibatches:
        minibatch = batch.select(rows)
        logprobs, entropy, routes = (torch.zeros(minibatch.mask.shape) for _ in range(3))
        for picked, micro in minibatch.share(token_budget, policy.shares_prompts, apart):
            tokens, micro = slice(micro.mask.shape[1]), micro.to(policy.device)
            computed = (*policy.logprobs(micro, temperature), rerouted(policy, micro))
            for whole, part in zip((logprobs, entropy, routes), computed, strict=True):
                whole[picked, tokens] = part.cpu()
        ranks.add(logprobs, entropy, routes)
        yield rows, logprobs, entropy, routes


def reward_metrics(minibatch: Batch, group_size: int, scoring: Scoring = PAPER) -> dict[str, float]:
    """Return the reward metrics of the minibatch.

    reward/answer, reward/format, reward/own  means without the weights of the sum
    groups/equal_reward                       share of groups whose rewards are all equal, which have no gradient
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
    """Return the mean of each metric in `OUTCOME` over the episodes of the minibatch, or an empty dict if it has none."""
    outcomes = minibatch.outcomes[~minibatch.outcomes.isnan().any(dim=1)]
    return (
        {f"episodes/{name}": value for name, value in zip(OUTCOME, outcomes.mean(dim=0).tolist(), strict=True)}
        if len(outcomes)
        else {}
    )
