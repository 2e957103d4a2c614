"""Tests of extreme ratios, and of masks, padding and micro-batches, which must not change a gradient."""

import pytest
import torch
from objective_cases import CASES, ragged_batch
from torch.nn.functional import pad

from sspo_cli.objectives import build_objective

EXTREMES = [20.0, 21.0, 88.0, 100.0, 1e4, 3e38, float("inf")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_extreme_ratios_give_finite_weights_and_gradients(name, dtype):
    """Each extreme d gives the rows [d, -d, 0.01], [d, d, d] and [-d, -d, -d], with both signs of the advantage."""
    objective = build_objective(**CASES[name][0])
    d = torch.tensor(EXTREMES)
    rows = torch.cat(
        [torch.stack([d, -d, torch.full_like(d, 0.01)], 1), d[:, None].expand(-1, 3), -d[:, None].expand(-1, 3)]
    )
    log_ratio = torch.cat([rows, rows]).to(dtype).requires_grad_()
    advantages = torch.cat([torch.ones(len(rows)), -torch.ones(len(rows))]).to(dtype)
    weights = objective.weights(log_ratio, advantages, torch.ones_like(log_ratio))
    (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
    token_weights = objective.token_weights(log_ratio, advantages, torch.ones_like(log_ratio))
    assert weights.dtype == token_weights.dtype == torch.float32
    for values in (weights, gradient, token_weights):
        assert values.isfinite().all()
    assert (gradient[log_ratio.abs() > 20] == 0).all()
    assert (token_weights[log_ratio.abs() > 20] == 0).all()


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "sequence"])
def test_a_sharp_sigmoid_does_not_underflow(method):
    """σ(τ(ρ - 1)) underflows to 0 in float32 for τ = 150 and ρ near 0, so log σ must not be computed from it."""
    log_ratio = torch.full((2, 3), -10.0, requires_grad=True)
    objective = build_objective(method=method, gate="sigmoid", tau_neg=150.0, tau_pos=150.0)
    weights = objective.weights(log_ratio, torch.tensor([1.0, -1.0]), torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
    assert weights.isfinite().all()
    assert gradient.isfinite().all()


def test_an_extreme_token_leaves_the_gradient_of_its_neighbours():
    log_ratio = torch.tensor([[100.0, 0.0]], requires_grad=True)
    weights = build_objective(method="sspo", gate="atanlog").weights(log_ratio, torch.ones(1), torch.ones(1, 2))
    (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, weights.item() / 2]]))


@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name):
    log_ratio, advantages, mask = ragged_batch(0, torch.bfloat16)
    objective = build_objective(**CASES[name][0])
    narrow = objective.weights(log_ratio, advantages, mask)
    assert torch.equal(narrow, objective.weights(log_ratio.float(), advantages.float(), mask))


@pytest.mark.parametrize("name", CASES)
def test_a_completion_without_tokens_has_a_finite_weight_and_no_gradient(name):
    log_ratio = torch.tensor([[float("nan"), float("inf")], [0.1, 0.2]], requires_grad=True)
    mask = torch.tensor([[0, 0], [1, 1]])
    objective = build_objective(**CASES[name][0])
    weights = objective.weights(log_ratio, torch.tensor([1.0, 1.0]), mask)
    (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
    assert weights.isfinite().all()
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).all() or name in ("gspo", "luspo")
    assert (objective.token_weights(log_ratio, torch.tensor([1.0, 1.0]), mask)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_any_kind_of_mask_counts_exactly(dtype):
    """bfloat16 rounds integers above 256; a count of 701 would become 700."""
    log_ratio, mask = torch.full((1, 701), 0.1), torch.ones(1, 701)
    weights = build_objective(method="grpo").weights(log_ratio, torch.ones(1), mask.to(dtype))
    torch.testing.assert_close(weights, torch.tensor([0.1]).exp())


def test_nan_on_a_token_of_the_policy_is_not_hidden():
    log_ratio = torch.tensor([[0.1, float("nan")]])
    assert build_objective(method="sspo").weights(log_ratio, torch.ones(1), torch.ones(1, 2)).isnan().all()


def partitions(items):
    """Yield all ways to split a list into non-empty parts."""
    if not items:
        yield []
        return
    first, *rest = items
    for parts in partitions(rest):
        yield [[first], *parts]
        for i, part in enumerate(parts):
            yield [*parts[:i], [first, *part], *parts[i + 1 :]]


def minibatch_gradient(objective, features, theta, advantages, mask, parts, padding):
    """Compute the gradient of -Σ S Â / N for a linear 'policy', summed over micro-batches cut to their longest rows."""
    theta = theta.clone().requires_grad_()
    for number, part in enumerate(parts):
        length = int(mask[part].any(0).nonzero().max()) + 1 + padding * (number % 3)
        room = (0, max(0, length - mask.shape[1]))
        own = pad(mask[part], room)[:, :length]
        log_ratio = pad(features[part] @ theta, room, value=float("nan"))[:, :length]
        log_ratio = log_ratio.masked_fill(~own, (float("nan"), float("inf"), -1e30)[number % 3])
        loss = -(objective.weights(log_ratio, advantages[part], own) * advantages[part]).sum() / len(mask)
        loss.backward()
    return theta.grad


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_depends_on_neither_the_split_nor_the_padding(name):
    """All 52 partitions of a minibatch of 5 completions are tried, with and without extra padding."""
    generator = torch.Generator().manual_seed(1)
    features, theta = torch.randn(5, 8, 6, generator=generator), torch.randn(6, generator=generator) * 0.1
    advantages = torch.tensor([1.2, -0.7, 0.4, 0.0, -1.5])
    mask = torch.arange(8) < torch.tensor([8, 3, 5, 1, 6])[:, None]
    mask[0, 2:4] = False
    objective = build_objective(**CASES[name][0])
    whole = minibatch_gradient(objective, features, theta, advantages, mask, [[0, 1, 2, 3, 4]], padding=0)
    assert whole.norm() > 1e-2
    for parts in partitions([0, 1, 2, 3, 4]):
        for padding in (0, 5):
            gradient = minibatch_gradient(objective, features, theta, advantages, mask, parts, padding)
            assert (gradient - whole).norm() <= 1e-6 * whole.norm()


def test_weights_do_not_depend_on_the_neighbours_in_the_batch():
    log_ratio, advantages, mask = ragged_batch(5, torch.float32)
    for name in CASES:
        objective = build_objective(**CASES[name][0])
        together = objective.weights(log_ratio, advantages, mask)
        alone = [
            objective.weights(log_ratio[i : i + 1], advantages[i : i + 1], mask[i : i + 1]) for i in range(len(mask))
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=0)
