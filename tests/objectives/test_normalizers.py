"""Tests of the factor c_i of each completion, by hand and by its effect on the gradient."""

import pytest
import torch

from sspo_cli.errors import UserError
from sspo_cli.objectives import METHODS, NORMALIZERS, build_objective

LENGTHS = torch.tensor([1, 0, 3, 4])  # tokens that count in each of the N = 4 completions; the second one is masked out


@pytest.mark.parametrize(
    ("normalizer", "factors"),
    [
        ("sequence", [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        ("token", [1 / 8, 0, 3 / 8, 4 / 8]),
        ("constant", [1 / 40, 0, 3 / 40, 4 / 40]),
        ("length", [1 / 4, 0, 3 / 4, 4 / 4]),
    ],
)
def test_factors_by_hand(normalizer, factors):
    objective = build_objective(method="sspo", normalizer=normalizer, token_limit=10)
    assert objective.factors(LENGTHS).tolist() == pytest.approx(factors)


def test_a_minibatch_without_tokens_has_finite_factors():
    for normalizer in NORMALIZERS:
        factors = build_objective(method="sspo", normalizer=normalizer, token_limit=10).factors(
            torch.zeros(3, dtype=int)
        )
        assert factors.isfinite().all()


def test_the_constant_normalizer_needs_the_limit():
    with pytest.raises(UserError, match=r"normalizer constant divides by the maximum length.*pass token_limit"):
        build_objective(method="grpo", normalizer="constant")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_on_policy_all_methods_of_a_normalizer_have_the_same_gradient(normalizer):
    """The gradient at every token of completion i is -c_i Â_i / |y_i|.

    c_i / |y_i| is 1/(N |y_i|) for `sequence`, 1/Σ|y| for `token`, 1/(N·L) for `constant`, 1/N for `length`.
    """
    mask = torch.arange(4) < LENGTHS[:, None]
    advantages = torch.tensor([1.0, 2.0, -1.5, 0.5])
    scale = {"sequence": 1 / 4 / LENGTHS.clamp(min=1), "token": 1 / 8, "constant": 1 / 40, "length": 1 / 4}[normalizer]
    expected = -(advantages * scale)[:, None] * mask
    for method in [name for name, row in METHODS.items() if row.default and name != "pspo"]:
        objective = build_objective(method=method, normalizer=normalizer, token_limit=10)
        log_ratio = torch.zeros(4, 4, requires_grad=True)
        weights = objective.weights(log_ratio, advantages, mask)
        loss = -(objective.factors(LENGTHS) * weights * advantages)[LENGTHS > 0].sum()
        (gradient,) = torch.autograd.grad(loss, log_ratio)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


def test_dapo_and_dr_grpo_by_hand():
    """For completions of 1 and 3 tokens, DAPO divides the sum over all tokens of the minibatch by 4, Dr. GRPO by 2·10."""
    log_ratio = torch.tensor([[0.1, 0.0, 0.0], [-0.1, 0.3, 0.05]])
    advantages, mask = torch.tensor([1.0, -2.0]), torch.tensor([[1, 0, 0], [1, 1, 1]])
    tokens = [1.0 * min(torch.tensor(0.1).exp(), torch.tensor(1.2))]
    tokens += [-2.0 * max(torch.tensor(d).exp(), torch.tensor(0.8)) for d in (-0.1, 0.3, 0.05)]
    for normalizer, divisor in (("token", 4), ("constant", 2 * 10)):
        objective = build_objective(method="grpo", eps_low=0.2, eps_high=0.2, normalizer=normalizer, token_limit=10)
        total = (objective.factors(mask.sum(1)) * objective.weights(log_ratio, advantages, mask) * advantages).sum()
        assert total.item() == pytest.approx(sum(tokens).item() / divisor, rel=1e-6)
