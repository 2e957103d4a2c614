"""The gradient of a minibatch does not depend on its split, its padding or the shortcuts."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sspo_cli.config import LearningOptions
from sspo_cli.objectives import build_objective, weight_histogram
from sspo_cli.policy.learner import StepResult, accumulate_gradient, fill_old_logprobs, reward_metrics, step_metrics


def stale(policy, batch):
    """Fill old_logprobs, then move the policy, so that log-ratios are a few tenths; return the batch."""
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], 10**6, 1.0)
    with torch.no_grad():
        for index, parameter in enumerate(policy.parameters):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(0.02 * parameter.abs().mean() * noise)
    return batch


def gradient(policy, batch, method, on_policy=False, **options):
    policy.model.zero_grad()
    objective = build_objective(**method)
    factors = objective.factors(batch.mask.sum(1))
    result = accumulate_gradient(policy, objective, batch, factors, LearningOptions(**options), 1.0, on_policy)
    return (
        torch.cat([parameter.grad.flatten() for parameter in policy.parameters]),
        step_metrics(batch, result),
        result.old_logprobs,
    )


METHODS = [{"method": m} for m in ("grpo", "gspo", "gmpo", "sapo", "sspo")] + [{"method": "sspo", "gate": "gumbel"}]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_any_split_into_micro_batches_gives_the_same_gradient_and_metrics(policy, make_batch, method):
    batch = stale(policy, make_batch())
    whole, metrics, _ = gradient(policy, batch, method, token_budget=10**6)
    assert whole.norm() > 0.1
    assert metrics["ratio/log_std"] > 0.05
    for budget in (1, 40, 77):
        split, split_metrics, _ = gradient(policy, batch, method, token_budget=budget)
        assert (split - whole).norm() <= 1e-6 * whole.norm()
        assert split_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_token_weights_and_their_histogram_do_not_depend_on_the_split(policy, make_batch, method):
    batch = stale(policy, make_batch())
    objective = build_objective(**method)
    log_ratio = policy.logprobs(batch, 1.0)[0].detach() - batch.old_logprobs
    expected = objective.token_weights(log_ratio, batch.advantages, batch.mask)
    assert (expected - 1).abs().max() > 0.01
    for budget in (10**6, 40):
        options = LearningOptions(token_budget=budget)
        result = accumulate_gradient(policy, objective, batch, torch.ones(len(batch)), options, 1.0, False)
        torch.testing.assert_close(result.token_weights, expected, atol=1e-4, rtol=1e-4)
        histogram = weight_histogram(result.token_weights, result.advantages, batch.mask)
        for name, sign in (("positive", 1), ("negative", -1)):
            of_sign = result.token_weights[(batch.advantages.sign() == sign)[:, None] & batch.mask]
            counts, _ = np.histogram(of_sign.double().round(decimals=6), [*(k / 20 for k in range(24)), np.inf])
            assert histogram[name] == counts.tolist()


def test_metrics_of_rows_from_two_halves_are_those_of_the_minibatch(policy, make_batch):
    """A row does not depend on its neighbours, so that several processes can combine their rows."""
    batch, objective = stale(policy, make_batch()), build_objective(method="sspo")
    options = LearningOptions(token_budget=60, importance_cap=2.0)
    factors = objective.factors(batch.mask.sum(1))
    whole = accumulate_gradient(policy, objective, batch, factors, options, 1.0, False)
    gathered = StepResult(*(torch.zeros_like(getattr(whole, field.name)) for field in fields(StepResult)))
    for rows in (torch.arange(5), torch.arange(5, len(batch))):
        half = accumulate_gradient(policy, objective, batch.select(rows), factors[rows], options, 1.0, False)
        for field in fields(StepResult):
            if field.name == "expert_counts":  # counted per layer, not per row, and only for mixtures of experts
                continue
            part, target = getattr(half, field.name), getattr(gathered, field.name)
            target[(rows, slice(part.shape[1])) if part.ndim == 2 else rows] = part
    assert step_metrics(batch, gathered) == pytest.approx(step_metrics(batch, whole), rel=1e-4, abs=1e-6)
    log_ratio = (policy.logprobs(batch, 1.0)[0].detach() - batch.old_logprobs) * batch.mask
    torch.testing.assert_close(whole.log_ratio, log_ratio, atol=1e-5, rtol=1e-4)
    weights = objective.weights(log_ratio, whole.advantages, batch.mask)
    torch.testing.assert_close(whole.objective, weights * whole.advantages, atol=1e-5, rtol=1e-4)


def test_the_gradient_is_that_of_the_equation(policy, make_batch):
    """The expected gradient is that of SSPO-atanlog, eq. (17), computed row by row from full logits."""
    batch = stale(policy, make_batch())
    ours, _, _ = gradient(policy, batch, {"method": "sspo", "tau_neg": 0.3, "tau_pos": 0.2})
    policy.model.zero_grad()
    total = torch.zeros(())
    for row in range(len(batch)):
        start, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        ids = batch.tokens[row, : start + length]
        logits = policy.model(input_ids=ids[None]).logits[0, start - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(-1, ids[start:, None])[:, 0]
        ratio = (logprobs - batch.old_logprobs[row, :length]).exp()
        tau = 0.2 if batch.advantages[row] > 0 else 0.3
        gate = (tau * torch.atan(ratio.log() / tau)).exp()
        total = total + gate.prod() ** (1 / length) * batch.advantages[row]
    (-total / len(batch)).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in policy.parameters])
    assert (ours - expected).norm() <= 1e-4 * expected.norm()


def test_on_policy_every_method_takes_the_plain_policy_gradient_step(policy, make_batch):
    """ρ is exactly 1, and no forward pass computes old_logprobs: the current log-probabilities are returned in their place."""
    batch = make_batch()
    gradients = []
    for method in METHODS:
        one, metrics, old = gradient(policy, batch, method, on_policy=True)
        assert metrics["ratio/log_std"] == metrics["ratio/log_abs_p99"] == metrics["ratio/kl"] == 0.0
        gradients.append(one)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-6 * gradients[0].norm()
    torch.testing.assert_close(old, policy.logprobs(batch, 1.0)[0].detach())


def test_old_logprobs_of_chosen_minibatches_only_are_filled_in(policy, make_batch):
    batch = make_batch()
    rows = torch.tensor([3, 8, 1])
    fill_old_logprobs(policy, batch, [rows], 30, 1.0)
    expected = policy.logprobs(batch, 1.0)[0].detach()
    torch.testing.assert_close(batch.old_logprobs[rows], expected[rows], atol=1e-5, rtol=1e-5)
    others = [row for row in range(len(batch)) if row not in rows.tolist()]
    assert (batch.old_logprobs[others] == 0).all()


def test_masked_truncated_completions_have_no_gradient_and_count_in_the_mean(policy, make_batch):
    batch, masked = make_batch(), make_batch(mask_truncated=True)
    keep = ~batch.truncated
    expected, _, _ = gradient(
        policy, replace(batch, advantages=batch.advantages * keep), {"method": "sspo"}, on_policy=True
    )
    ours, _, _ = gradient(policy, masked, {"method": "sspo"}, on_policy=True)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


RATIOS_TO_THE_SAMPLER = (0.25, 0.8, 1.0, 1.5, 3.0, 1e6)  # one ratio per completion


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
        ({"importance_cap": 1.0}, (0.25, 0.8, 1.0, 1.0, 1.0, 1.0)),
        ({"importance_cap": 2.0}, (0.25, 0.8, 1.0, 1.5, 2.0, 2.0)),
        ({"importance_cap": 2.0, "importance_beyond": "mask"}, (0.25, 0.8, 1.0, 1.5, 0.0, 0.0)),
        ({"importance_cap": 1e9}, RATIOS_TO_THE_SAMPLER),
    ],
)
def test_importance_cap_weighs_each_completion_by_its_bounded_ratio_to_the_sampler(
    policy, make_batch, options, factors, on_policy
):
    """The expected loss is that of GRPO, eq. (2), computed row by row from full logits, with factors by hand."""
    batch = stale(policy, make_batch(prompts=3, group_size=2))
    rows = [
        slice(int(start), int(start + length))
        for start, length in zip(batch.prompt_lengths, batch.lengths, strict=True)
    ]
    current = []
    for ids, own in zip(batch.tokens, rows, strict=True):
        logits = policy.model(input_ids=ids[None, : own.stop]).logits[0, own.start - 1 : -1]
        current.append(logits.log_softmax(-1).gather(-1, ids[own, None])[:, 0])
    old = [c.detach() if on_policy else o[: len(c)].clone() for c, o in zip(current, batch.old_logprobs, strict=True)]
    batch.sampling_logprobs.fill_(torch.nan)  # positions without a sampled token must not count
    for sampling, values, ratio in zip(batch.sampling_logprobs, old, RATIOS_TO_THE_SAMPLER, strict=True):
        sampling[: len(values)] = values - math.log(ratio) / len(values)
    total = torch.zeros(())
    for c, o, advantage, factor in zip(current, old, batch.advantages, factors, strict=True):
        ratio = (c - o).exp()
        clipped = ratio.clamp(max=1.2) if advantage > 0 else ratio.clamp(min=0.8)
        total = total + clipped.mean() * factor * advantage
    loss = -total / 6
    policy.model.zero_grad()
    loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in policy.parameters])
    ours, metrics, _ = gradient(policy, batch, {"method": "grpo"}, on_policy, **options, token_budget=40)
    assert metrics["policy/loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert (ours - expected).norm() <= 1e-4 * expected.norm()
    distances = [abs(math.log(r)) / len(o) for r, o in zip(RATIOS_TO_THE_SAMPLER, old, strict=True)]
    assert metrics["sampler/mismatch_max"] == pytest.approx(max(distances), rel=1e-4)
    tokens = sum(abs(math.log(r)) for r in RATIOS_TO_THE_SAMPLER) / int(batch.mask.sum())
    assert metrics["sampler/mismatch_mean"] == pytest.approx(tokens, rel=1e-4)


@pytest.mark.parametrize("beyond", ["truncate", "mask"])
def test_the_gradient_of_each_token_is_weighed_by_its_own_bounded_ratio_to_the_sampler(policy, make_batch, beyond):
    """The expected gradient is that of GRPO, eq. (2), computed row by row from full logits.

    The weights do not change the value of the loss.
    """
    batch = stale(policy, make_batch(prompts=3, group_size=2))
    ratios = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(3)) * 2.0 + 0.2
    assert (ratios[batch.mask] > 1.5).any()
    batch = replace(batch, sampling_logprobs=batch.old_logprobs - ratios.log())
    factors = ratios.clamp(max=1.5) if beyond == "truncate" else torch.where(ratios > 1.5, 0.0, ratios)
    total = torch.zeros(())
    for row, (ids, start, length) in enumerate(zip(batch.tokens, batch.prompt_lengths, batch.lengths, strict=True)):
        own = slice(int(start), int(start + length))
        logits = policy.model(input_ids=ids[None, : own.stop]).logits[0, own.start - 1 : -1]
        current = logits.log_softmax(-1).gather(-1, ids[own, None])[:, 0]
        ratio = (current - batch.old_logprobs[row, : len(current)]).exp()
        clipped = ratio.clamp(max=1.2) if batch.advantages[row] > 0 else ratio.clamp(min=0.8)
        total = total + (factors[row, : len(current)] * clipped).mean() * batch.advantages[row]
    policy.model.zero_grad()
    (-total / len(batch)).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in policy.parameters])
    plain = gradient(policy, batch, {"method": "grpo"})[1]
    options = {"importance_cap": 1.5, "importance_level": "token", "importance_beyond": beyond}
    ours, metrics, _ = gradient(policy, batch, {"method": "grpo"}, **options, token_budget=40)
    assert (ours - expected).norm() <= 1e-4 * expected.norm()
    assert metrics["policy/loss"] == pytest.approx(plain["policy/loss"], rel=1e-4)


def test_equal_ratios_of_all_tokens_scale_the_gradient_of_any_aggregation(policy, make_batch):
    batch = stale(policy, make_batch())
    batch = replace(batch, sampling_logprobs=batch.old_logprobs - math.log(0.5))
    options = {"importance_cap": 2.0, "importance_level": "token"}
    for method in METHODS:
        half, whole = gradient(policy, batch, method, **options)[0], gradient(policy, batch, method)[0]
        torch.testing.assert_close(half, 0.5 * whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", [{"importance_level": "token"}, {"importance_beyond": "mask"}], ids=str)
def test_what_says_how_a_cap_is_applied_needs_a_cap(given):
    with pytest.raises(ValueError, match=r"learning\.importance_cap is applied, which is null"):
        LearningOptions(**given)


@pytest.mark.parametrize("normalizer", ["token", "length"])
def test_a_normalizer_counts_the_tokens_of_the_whole_minibatch(policy, make_batch, normalizer):
    """The gradient sums those of single completions times their factors, which depend on all lengths of the minibatch."""
    batch = stale(policy, make_batch(mask_truncated=True))
    lengths = batch.mask.sum(1)
    assert (lengths == 0).any()
    factors = lengths / (lengths.sum() if normalizer == "token" else len(batch))
    expected = sum(
        gradient(policy, batch.select(torch.tensor([row])), {"method": "sspo"})[0] * factors[row]
        for row in range(len(batch))
        if lengths[row]
    )
    for budget in (10**6, 40):
        ours = gradient(policy, batch, {"method": "sspo", "normalizer": normalizer}, token_budget=budget)[0]
        assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_what_the_sampler_says_of_masked_tokens_does_not_weigh_a_completion(policy, make_batch):
    batch = stale(policy, make_batch(mask_truncated=True))
    assert not batch.mask.any(dim=1).all()
    unlikely = torch.where(batch.mask, batch.sampling_logprobs, -50.0)
    losses = [
        gradient(policy, replace(batch, sampling_logprobs=sampling), {"method": "sspo"}, importance_cap=1e6)[1]
        for sampling in (batch.sampling_logprobs, unlikely)
    ]
    assert losses[0] == losses[1]


def test_reward_metrics_are_of_the_minibatch(make_batch):
    batch = make_batch()
    batch.answer_rewards[:4] = 1.0
    batch.rewards[:4] = 1.5
    metrics = reward_metrics(batch, 4)
    assert metrics["reward/answer"] == pytest.approx((4 + 2 + 2) / 12)
    assert metrics["reward/format"] == 0.5
    assert metrics["reward/mean"] == pytest.approx(8 / 12 + 0.5)
    assert metrics["groups/equal_reward"] == pytest.approx(1 / 3)
    assert metrics["reward/std"] == pytest.approx(2 * (1 / 3) ** 0.5 / 3)
    assert metrics["completions/length"] == pytest.approx(batch.lengths.float().mean().item())
    assert metrics["completions/truncated"] == pytest.approx(2 / 12)


@pytest.mark.parametrize("method", ["grpo", "gspo", "gmpo", "sspo"])  # SAPO's S on-policy is 2 / τ
def test_completions_that_are_masked_out_count_nothing_in_the_loss(policy, make_batch, method):
    """S of a completion without tokens is 1, but must not count.

    On-policy S = 1, so that the loss is the sum of -Â over the completions that count, divided by the number of all.
    """
    batch = make_batch(mask_truncated=True)
    counted = ~batch.truncated
    assert 0 < counted.sum() < len(batch)
    objective = build_objective(method=method)
    factors = objective.factors(batch.mask.sum(1))
    result = accumulate_gradient(policy, objective, batch, factors, LearningOptions(), 1.0, on_policy=True)
    expected = -(batch.advantages * counted).mean().item()
    assert step_metrics(batch, result)["policy/loss"] == pytest.approx(expected, rel=1e-5)
