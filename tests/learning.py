"""Loss and gradient of a policy, for tests of changes that must not affect them."""

import pytest
import torch
from torch import Tensor

from sspo_cli.config import LearningOptions
from sspo_cli.objectives import build_objective
from sspo_cli.policy.batch import Batch
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs, step_metrics
from sspo_cli.policy.model import Policy


def loss_and_gradient(policy: Policy, batch: Batch, token_budget: int) -> tuple[float, Tensor]:
    """Return the loss and the gradient of a minibatch.

    Its old log-probabilities are the policy's plus a tenth of the advantage, so that ratios differ from 1.
    """
    policy.model.zero_grad()
    batch.old_logprobs.zero_()
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], token_budget, 0.7)
    batch.old_logprobs.add_(0.1 * batch.advantages.unsqueeze(1))
    options = LearningOptions(token_budget=token_budget)
    objective = build_objective(method="sspo")
    factors = objective.factors(batch.mask.sum(1))
    result = accumulate_gradient(policy, objective, batch, factors, options, 0.7, on_policy=False)
    return step_metrics(batch, result)["policy/loss"], torch.cat(
        [parameter.grad.flatten() for parameter in policy.parameters]
    )


def assert_same(one: tuple[float, Tensor], other: tuple[float, Tensor]) -> None:
    """Check that two losses and gradients are equal up to rounding."""
    (loss, gradient), (expected_loss, expected) = one, other
    assert expected.norm() > 1e-3
    assert loss == pytest.approx(expected_loss, abs=1e-6)
    torch.testing.assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)
