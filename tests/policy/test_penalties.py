"""Tests of the KL penalty and of entropy ratio clipping.

Values agree with 50 digits, gradients with closed forms, and the loss is the same under every split.
"""

import pytest
import torch
from mpmath import exp, mpf

from sspo_cli.config import LearningOptions, validate
from sspo_cli.errors import UserError
from sspo_cli.objectives import build_objective, has_kept_entropy, reference_kl
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs, fill_reference_logprobs, step_metrics

METHODS = [
    {"method": "grpo"},
    {"method": "gspo"},
    {"method": "sspo"},
    {"method": "cispo"},  # normalized over all tokens
    {"method": "grpo", "normalizer": "length"},
]


def moved(policy, seed):
    with torch.no_grad():
        for index, parameter in enumerate(policy.parameters):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1000 * seed + index))
            parameter.add_(0.06 * parameter.abs().mean() * noise)


@pytest.fixture
def batch(policy, make_batch):
    """A batch whose reference, old and current log-probabilities come from three policies, each moved from the one before."""
    batch = make_batch(mask_truncated=True)
    everything = [torch.arange(len(batch))]
    fill_reference_logprobs(policy, batch, everything, 10**6, 1.0)
    moved(policy, 1)
    fill_old_logprobs(policy, batch, everything, 10**6, 1.0)
    moved(policy, 2)
    return batch


def gradient(policy, batch, method, budget=10**6, **options):
    policy.model.zero_grad()
    objective = build_objective(**method, token_limit=16)
    options = LearningOptions(token_budget=budget, **options)
    factors = objective.factors(batch.mask.sum(1))
    result = accumulate_gradient(policy, objective, batch, factors, options, 1.0, on_policy=False)
    return torch.cat([p.grad.flatten() for p in policy.parameters]), step_metrics(batch, result, options), result


def test_k3_and_its_gradient_are_those_of_fifty_digits():
    differences = [
        [0.7, -1.3, 1e-4, 9.0],
        [-0.02, 3.0, 0.0, 0.0],
        [float("nan"), 1.0, 1.0, 1.0],
        [25.0, -25.0, 0.0, 0.0],
    ]
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    reference = torch.tensor(differences, dtype=torch.float64)
    logprobs = torch.zeros_like(reference, requires_grad=True)
    values = reference_kl(logprobs, reference, mask)
    values.sum().backward()
    for row, (deltas, counted) in enumerate(zip(differences, mask.tolist(), strict=True)):
        inside = [min(max(mpf(d), -20), 20) for d, c in zip(deltas, counted, strict=True) if c]
        expected = sum(exp(d) - 1 - d for d in inside) / len(inside) if inside else mpf(0)
        assert values[row].item() == pytest.approx(float(expected), rel=1e-12, abs=1e-18)
        for column, (delta, is_counted) in enumerate(zip(deltas, counted, strict=True)):
            slope = (1 - exp(mpf(delta))) / len(inside) if is_counted and abs(delta) < 20 else mpf(0)
            assert logprobs.grad[row, column].item() == pytest.approx(float(slope), rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_penalty_is_weighed_like_the_completions_under_every_split(policy, batch, method):
    plain, metrics, _ = gradient(policy, batch, method)
    penalized, with_kl, result = gradient(policy, batch, method, kl=0.3)

    logprobs, _ = policy.logprobs(batch, 1.0)
    delta = batch.reference_logprobs - logprobs
    lengths = batch.mask.sum(1)
    k3 = torch.stack([(delta[i][m].exp() - 1 - delta[i][m]).sum() / max(1, m.sum()) for i, m in enumerate(batch.mask)])
    factors = {
        "cispo": lengths / lengths.sum(),
        "length": lengths / len(batch),
    }.get(method.get("normalizer", method["method"]), torch.full((len(batch),), 1 / len(batch)))
    policy.model.zero_grad()
    (0.3 * (factors * k3).sum()).backward()
    of_penalty = torch.cat([p.grad.flatten() for p in policy.parameters])
    assert of_penalty.norm() > 1e-3
    torch.testing.assert_close(penalized - plain, of_penalty, atol=2e-5, rtol=1e-4)
    assert with_kl["policy/loss"] - metrics["policy/loss"] == pytest.approx(0.3 * (factors * k3).sum().item(), abs=1e-6)
    assert with_kl["policy/reference_kl"] == pytest.approx(k3[lengths > 0].mean().item(), rel=1e-4)
    assert "policy/reference_kl" not in metrics
    assert (lengths == 0).any()
    assert not result.objective[lengths == 0].any()
    for budget in (1, 40):
        split, split_metrics, _ = gradient(policy, batch, method, budget, kl=0.3)
        assert (split - penalized).norm() <= 1e-5 * penalized.norm()
        assert split_metrics == pytest.approx(with_kl, rel=1e-4, abs=1e-6)


def test_an_entropy_is_kept_between_the_bounds_alone():
    old = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 2.0]])
    new = torch.tensor([[0.94, 0.96, 1.04, 1.06, 0.0, 1.0, 1.0]])
    assert has_kept_entropy(new, old, (0.95, 1.05)).tolist() == [[False, True, True, False, True, False, False]]
    assert has_kept_entropy(new, old, (0.4, 1.05)).tolist() == [[True, True, True, False, True, False, True]]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_tokens_whose_entropy_has_changed_have_a_value_and_no_gradient(policy, batch, method):
    bounds = (0.998, 1.003)
    logprobs, entropy = policy.logprobs(batch, 1.0)
    ratio = entropy / batch.old_entropy
    is_kept = batch.mask & (ratio > bounds[0]) & (ratio < bounds[1])
    share = 1 - (is_kept.sum() / batch.mask.sum()).item()
    assert 0.1 < share < 0.9

    plain, metrics, whole = gradient(policy, batch, method)
    clipped, with_bounds, result = gradient(policy, batch, method, entropy_range=bounds)
    assert (clipped - plain).norm() > 0.05 * plain.norm()
    torch.testing.assert_close(result.objective, whole.objective)
    assert with_bounds == {**metrics, "policy/entropy_clipped": pytest.approx(share)}

    # By the chain rule: the gradient of J with respect to each log-probability, without the changed tokens.
    objective = build_objective(**method, token_limit=16)
    log_ratio = (logprobs - batch.old_logprobs).detach().requires_grad_()
    weights = objective.weights(log_ratio, batch.advantages, batch.mask)
    kept_rows = batch.mask.any(1)
    gains = objective.factors(batch.mask.sum(1)) * weights * batch.advantages
    (slope,) = torch.autograd.grad(-gains[kept_rows].sum(), log_ratio)
    policy.model.zero_grad()
    (logprobs * slope * is_kept).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters])
    torch.testing.assert_close(clipped, expected, atol=2e-6, rtol=1e-4)


def test_a_policy_that_has_not_moved_clips_no_entropy(policy, make_batch):
    batch = make_batch()
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], 40, 1.0)
    _, metrics, _ = gradient(policy, batch, METHODS[0], entropy_range=(0.95, 1.05))
    assert metrics["policy/entropy_clipped"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kl": -0.1}, "learning.kl"),
        ({"kl": float("nan")}, "learning.kl"),
        ({"entropy_range": [1.01, 1.05]}, "excludes 1, an unchanged entropy"),
        ({"entropy_range": [0.95, 1]}, "excludes 1, an unchanged entropy"),
        ({"entropy_range": [0.95]}, "learning.entropy_range"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        validate({"learning": options})
