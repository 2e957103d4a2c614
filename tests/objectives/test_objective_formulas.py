"""Values, gradients and token weights agree with the paper's formulas in 50 digits."""

import pytest
import torch
from mpmath import exp, mpf
from objective_cases import CASES, NINE, ragged_batch

from sspo_cli.objectives import build_objective

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def expected(name, log_ratio, advantages, mask):
    """Return S [B], ∂S_i/∂d_it [B, T] and w [B, T] by the paper's formulas, rounded to float64."""
    _, aggregation, gate, options = CASES[name]
    options = {key: mpf(value) if isinstance(value, float) else value for key, value in options.items()}
    weights = torch.zeros(len(log_ratio), dtype=torch.float64)
    gradient, token_weights = (
        torch.zeros_like(log_ratio, dtype=torch.float64),
        torch.zeros_like(log_ratio, dtype=torch.float64),
    )
    for i, own in enumerate(mask):
        rhos = [exp(mpf(d)) for d in log_ratio[i][own].tolist()]
        total, derivatives, w = aggregation(gate, rhos, advantages[i].item(), options)
        weights[i] = float(total)
        gradient[i, own] = torch.tensor([float(value) for value in derivatives], dtype=torch.float64)
        token_weights[i, own] = torch.tensor([float(value) for value in w], dtype=torch.float64)
    return weights, gradient, token_weights


def assert_close(actual, wanted, dtype):
    """Check that values agree within the tolerance, relative to the largest entry of their row if that is above 1."""
    assert actual.dtype == dtype
    scale = wanted.abs() if wanted.dim() == 1 else wanted.abs().amax(1, keepdim=True)
    torch.testing.assert_close(
        actual.double() / scale.clamp(min=1), wanted / scale.clamp(min=1), rtol=0, atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_weights_gradients_and_token_weights_are_the_papers(name, dtype):
    objective = build_objective(**CASES[name][0])
    for seed in range(3):
        log_ratio, advantages, mask = ragged_batch(seed, dtype)
        log_ratio.requires_grad_()
        weights = objective.weights(log_ratio, advantages, mask)
        (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
        token_weights = objective.token_weights(log_ratio, advantages, mask)

        wanted_weights, wanted_gradient, wanted_token_weights = expected(name, log_ratio.detach(), advantages, mask)
        assert_close(weights.detach(), wanted_weights, dtype)
        assert_close(gradient, wanted_gradient, dtype)
        assert_close(token_weights, wanted_token_weights, dtype)
        assert not token_weights.requires_grad


@pytest.mark.parametrize("name", CASES)
def test_small_ratios_in_float32(name):
    """After one optimizer step |d| is about 1e-4, where 4τσ(·) - 2τ and ρ - 1 cancel; the error is at most the rounding of S."""
    log_ratio = torch.tensor([[1e-4, -3e-5], [2e-5, 7e-5]])
    advantages, mask = torch.tensor([1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool)
    weights = build_objective(**CASES[name][0]).weights(log_ratio, advantages, mask)
    torch.testing.assert_close(weights.double(), expected(name, log_ratio, advantages, mask)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_on_policy_every_objective_has_the_plain_policy_gradient(name, dtype):
    """PSPO is the exception: it mixes the policy with the old one, so its gradient is 1 - α of the plain gradient."""
    _, advantages, mask = ragged_batch(0, dtype)
    log_ratio = torch.zeros(mask.shape, dtype=dtype, requires_grad=True)
    objective = build_objective(**CASES[name][0])
    loss = -(objective.weights(log_ratio, advantages, mask) * advantages).sum() / len(mask)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    plain = -advantages[:, None] * mask / mask.sum(1, keepdim=True) / len(mask) * (0.8 if name == "pspo" else 1)
    torch.testing.assert_close(gradient, plain.to(dtype), rtol=1e-6, atol=0)
    if name in NINE:
        torch.testing.assert_close(
            objective.token_weights(log_ratio, advantages, mask), mask.to(dtype), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("name", ["sapo", "sspo-expsig", "sspo-expatan", "sspo-atanlog", "sspo-siglog"])
def test_the_temperature_is_picked_by_the_sign_of_the_advantage(name):
    """Check eq. (10): tau_pos applies to positive advantages, and tau_neg to all others, including 0."""
    given = CASES[name][0]
    log_ratio, mask = torch.full((3, 4), 0.7), torch.ones(3, 4)
    advantages = torch.tensor([1.0, 0.0, -1.0])
    both = build_objective(**given).weights(log_ratio, advantages, mask)
    only_pos = build_objective(**{**given, "tau_neg": given["tau_pos"]}).weights(log_ratio, advantages, mask)
    only_neg = build_objective(**{**given, "tau_pos": given["tau_neg"]}).weights(log_ratio, advantages, mask)
    assert both[0] == only_pos[0] != only_neg[0]
    assert both[1] == only_neg[1] != only_pos[1]
    assert both[2] == only_neg[2] != only_pos[2]


def test_a_positive_advantage_is_clipped_from_above_only_and_another_from_below_only():
    """Eq. (1) is computed by hand for ρ = 1/2 and ρ = 2 with ε = 0.2."""
    objective = build_objective(method="grpo", eps_low=0.2, eps_high=0.2)
    log_ratio = torch.tensor([[0.5], [2.0], [0.5], [2.0]]).log()
    weights = objective.weights(log_ratio, torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.ones(4, 1))
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.2, 0.8, 2.0]))
