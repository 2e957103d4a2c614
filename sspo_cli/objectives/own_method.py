"""User-defined methods: functions of the log ratios of whole completions, checked like gates."""

from collections.abc import Callable

import torch
from torch import Tensor

from sspo_cli.errors import UserError
from sspo_cli.objectives.ratios import clean_log_ratio

OwnMethod = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log ratios [B, T], 0 where masked; advantages [B]; boolean mask [B, T]) -> S [B], differentiable in the log ratios."""

LENGTHS = (1, 3, 5)  # own tokens of the completions on which a method is checked
TOLERANCE = 1e-5


def along_equal_ratios(method: OwnMethod, advantages: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Convert a method to a gate that maps log ρ to log S of a completion whose tokens all have the ratio ρ.

    log S at ρ = 1 is subtracted, which cancels a factor c_i that the method itself applies. The module `conditions` checks
    this gate, [2, N] -> [2, N].
    """

    def gate(log_ratio: Tensor) -> Tensor:
        signs = advantages.to(dtype)[:, None].expand_as(log_ratio).reshape(-1)
        mask = torch.ones(log_ratio.numel(), max(LENGTHS), dtype=torch.bool)
        rows = log_ratio.reshape(-1, 1).expand_as(mask)
        on_policy = method(torch.zeros_like(rows), signs, mask)
        return (method(rows, signs, mask).log() - on_policy.log()).reshape(log_ratio.shape)

    return gate


def check_rows(method: OwnMethod, name: str, on_policy: bool) -> None:
    """Raise UserError unless a method has the properties that an aggregation of a gate has by construction.

    Checked on random completions:

    - There is one weight S_i per completion, and S_i and its gradient are finite.
    - S_i depends only on the completion's own unmasked tokens and its advantage, so that the split into micro-batches does
      not matter.
    - If `on_policy`: at ρ = 1 the gradient is the policy gradient, equal and positive at every token.

    name  subject of the error message
    """
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([length for length in LENGTHS for _ in range(2)])
    mask = torch.arange(max(LENGTHS)) < lengths[:, None]
    advantages = torch.tensor([1.0, -0.5] * len(LENGTHS))
    ratios = torch.randn(mask.shape, generator=draw)
    weights, gradient = _evaluate(method, name, ratios, advantages, mask)
    for what, values in (("S", weights), ("its gradient", gradient)):
        if not values.isfinite().all():
            raise UserError(f"{name} must be finite: {what} is not, at normally distributed log ratios")
    for row in range(len(mask)):
        own = mask[row : row + 1, : lengths[row]]
        alone, _ = _evaluate(method, name, ratios[row : row + 1, : lengths[row]], advantages[row : row + 1], own)
        if not torch.allclose(alone[0], weights[row], rtol=TOLERANCE, atol=TOLERANCE):
            raise UserError(
                f"{name} uses more than a completion's own tokens: S is {alone[0].item():.6g} alone and "
                f"{weights[row].item():.6g} in a batch; to apply a factor of the whole minibatch, use objective.normalizer"
            )
    if not on_policy:
        return
    _, gradient = _evaluate(method, name, torch.zeros_like(ratios), advantages, mask)
    for row in range(len(mask)):
        own_gradient = gradient[row, mask[row]]
        if not own_gradient.min() > 0 or not torch.allclose(own_gradient, own_gradient.mean(), rtol=1e-4, atol=0):
            raise UserError(
                f"{name} does not have the policy gradient at ρ = 1: the derivatives of S with respect to the log ratios of a "
                f"completion must be equal and positive, but are {', '.join(f'{value:.4g}' for value in own_gradient.tolist())}; "
                "pass --allow-any-method to run it anyway"
            )


def _evaluate(
    method: OwnMethod, name: str, log_ratio: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute S [B] and its derivative with respect to the log ratios [B, T]. Raises UserError if the function fails."""
    try:
        with torch.enable_grad():
            log_ratio = clean_log_ratio(log_ratio, mask).requires_grad_()
            weights = method(log_ratio, advantages, mask)
            if weights.shape != advantages.shape:
                raise ValueError(f"it returns the shape {list(weights.shape)}")
            (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
    except Exception as error:  # the user's function may raise anything
        problem = f"{type(error).__name__}: {error}"
        raise UserError(f"{name} fails on log ratios of shape {list(log_ratio.shape)}: {problem}") from error
    return weights.detach(), gradient
