"""The minibatch gradient: whatever the split, the padding and the shortcuts, the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sspo_cli.config import LearningOptions
from sspo_cli.objectives import build_objective
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs, reward_metrics


def stale(policy, batch):
    """The batch with old_logprobs of a policy that has moved on since: log-ratios of a few tenths."""
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], 10**6, 1.0)
    with torch.no_grad():
        for index, parameter in enumerate(policy.parameters):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.add_(0.02 * parameter.abs().mean() * noise)
    return batch


def gradient(policy, batch, method, on_policy=False, **options):
    policy.model.zero_grad()
    objective = build_objective(**method)
    learned = accumulate_gradient(policy, objective, batch, LearningOptions(**options), 1.0, on_policy)
    return (
        torch.cat([parameter.grad.flatten() for parameter in policy.parameters]),
        learned.metrics,
        learned.old_logprobs,
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
        learned = accumulate_gradient(policy, objective, batch, LearningOptions(token_budget=budget), 1.0, False)
        torch.testing.assert_close(learned.token_weights, expected, atol=1e-4, rtol=1e-4)
        for name, sign in (("positive", 1), ("negative", -1)):
            of_sign = learned.token_weights[(batch.advantages.sign() == sign)[:, None] & batch.mask]
            counts, _ = np.histogram(of_sign.double().round(decimals=6), [*(k / 20 for k in range(24)), np.inf])
            assert learned.histogram[name] == counts.tolist()


def test_the_gradient_is_that_of_the_equation(policy, make_batch):
    """SSPO-atanlog, eq. (17), row by row from full logits, against the loop's."""
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
    """ρ = 1 exactly, without a forward pass for old_logprobs, which come back as the current ones."""
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


def test_masked_truncated_completions_add_nothing_but_count_in_the_mean(policy, make_batch):
    batch, masked = make_batch(), make_batch(mask_truncated=True)
    keep = ~batch.truncated
    expected, _, _ = gradient(
        policy, replace(batch, advantages=batch.advantages * keep), {"method": "sspo"}, on_policy=True
    )
    ours, _, _ = gradient(policy, masked, {"method": "sspo"}, on_policy=True)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_importance_cap_weighs_each_completion_by_its_truncated_ratio_to_the_sampler(policy, make_batch):
    batch = stale(policy, make_batch())
    mismatch = ((batch.old_logprobs - batch.sampling_logprobs) * batch.mask).sum(dim=1)
    factors = mismatch.exp().clamp(max=2.0)
    assert (factors == 2.0).any() or (factors < 1).any()
    expected, _, _ = gradient(policy, replace(batch, advantages=batch.advantages * factors), {"method": "grpo"})
    ours, _, _ = gradient(policy, batch, {"method": "grpo"}, importance_cap=2.0)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


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
    metrics = reward_metrics(batch, 4)
    assert metrics["reward/answer"] == pytest.approx((4 + 2 + 2) / 12)
    assert metrics["reward/format"] == 0.5
    assert metrics["reward/mean"] == pytest.approx(8 / 12 + 0.5)
    assert metrics["groups/equal_reward"] == pytest.approx(1 / 3)
    assert metrics["reward/std"] == pytest.approx(2 * (1 / 3) ** 0.5 / 3)
    assert metrics["completions/length"] == pytest.approx(batch.lengths.float().mean().item())
