"""Numerical check of the paper's conditions on a gate (section 3), for user-defined gates and methods.

Everything is a function of d = log ρ: log f, and its derivative w = ρ f'/f. In each tensor [2, N], row 0 is for negative
advantages and row 1 for positive ones.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sspo_cli.errors import UserError
from sspo_cli.objectives.ratios import LOG_RATIO_LIMIT

GateFor = Callable[[Tensor, torch.dtype], Callable[[Tensor], Tensor]]
"""(advantages [B], dtype) -> gate; see Objective.gate_for."""

TOLERANCE = 1e-6
VANISHED = 0.1
"""Largest w at ρ = e^±20 that is accepted as vanished. Arctan gates fall slowly: with τ = 5, w is still 0.06 there."""


def check_usable(gate_for: GateFor, name: str) -> None:
    """Raise UserError unless the gate runs, keeps the shape, and has finite values and gradients at every ratio."""
    for dtype in (torch.float32, torch.float64):
        log_ratio = _grid(dtype)
        try:
            log_f, w = _evaluate(gate_for, log_ratio)
        except Exception as error:  # the user's function may raise anything
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"{name} fails on log ratios of shape {list(log_ratio.shape)}: {problem}") from error
        for what, values in (("log f", log_f), ("the derivative of log f", w)):
            if (bad := ~values.isfinite()).any():
                raise UserError(f"{name} must be finite: {what} in {dtype} is {_at(values, log_ratio, bad)}")


def check_conditions(gate_for: GateFor, name: str, override: str) -> None:
    """Raise UserError if the gate breaks one of the conditions (i), (ii), (iv), (iii), checked in this order.

    The message reports the condition, the ratio at which it fails, and `override`, the option that skips this check.
    """
    log_ratio = _grid(torch.float64)
    log_f, w = _evaluate(gate_for, log_ratio)
    violation = (
        _not_smooth(gate_for, log_ratio)
        or _not_on_policy(log_ratio, log_f, w)
        or _decreasing(log_ratio, w)
        or _no_bell(log_ratio, w)
    )
    if violation:
        raise UserError(f"{name} breaks condition {violation}; pass {override} to run it anyway")


def _not_smooth(gate_for: GateFor, log_ratio: Tensor) -> str | None:
    """Describe how condition (i) is violated, or return None. It requires that f is C¹, and that autograd computes f'.

    Each interval of the grid is bisected repeatedly towards its rougher half. If log f is C¹, its slope over the interval
    and w at both ends converge to the same value. They do not converge if log f or w jumps, or if
    the gate detaches a gradient.
    """
    left, right = log_ratio[:, :-1], log_ratio[:, 1:]
    while (right - left).max() > 1e-7:
        middle = (left + right) / 2
        left_is_rougher = _roughness(gate_for, left, middle) >= _roughness(gate_for, middle, right)
        left, right = torch.where(left_is_rougher, left, middle), torch.where(left_is_rougher, middle, right)
    roughness, (_, w) = _roughness(gate_for, left, right), _evaluate(gate_for, left)
    if (bad := roughness > 1e-3 * (1 + w.abs())).any():
        return f"(i), f is continuously differentiable: slope and derivative of log f differ by {_at(roughness, left, bad)}"
    return None


def _roughness(gate_for: GateFor, left: Tensor, right: Tensor) -> Tensor:
    (left_f, left_w), (right_f, right_w) = _evaluate(gate_for, left), _evaluate(gate_for, right)
    slope = (right_f - left_f) / (right - left)
    return (slope - (left_w + right_w) / 2).abs() + (right_w - left_w).abs()


def _not_on_policy(log_ratio: Tensor, log_f: Tensor, w: Tensor) -> str | None:
    """Describe how condition (ii), f(1) = 1 and f'(1) = 1, is violated, or return None."""
    on_policy, f = log_ratio == 0, log_f.exp()
    for what, values in (("f(1) = 1", f), ("f'(1) = 1", f * w)):
        if (bad := on_policy & ((values - 1).abs() > TOLERANCE)).any():
            return f"(ii), {what}: it is {_at(values, log_ratio, bad)}"
    return None


def _decreasing(log_ratio: Tensor, w: Tensor) -> str | None:
    """Describe how condition (iv), f is non-decreasing, is violated, or return None."""
    if (bad := w < -TOLERANCE).any():
        return f"(iv), f is non-decreasing: ρ f'/f is {_at(w, log_ratio, bad)}"
    return None


def _no_bell(log_ratio: Tensor, w: Tensor) -> str | None:
    """Describe how condition (iii) is violated, or return None.

    f'/f (iii.1) or w (iii.2, with w(0) = 0) must peak at ρ = 1 and fall on both sides, and w must vanish as ρ → ∞.
    """
    f_prime_by_f = w * torch.exp(-log_ratio)
    no_bell_1 = _rises_outwards(f_prime_by_f)
    no_bell_2 = _rises_outwards(w) | ((log_ratio == -LOG_RATIO_LIMIT) & (w > VANISHED))
    if no_bell_1.any() and no_bell_2.any():
        return (
            "(iii), f'/f or ρ f'/f has a bell shape around ρ = 1: neither has, because "
            f"f'/f is {_at(f_prime_by_f, log_ratio, no_bell_1)}, and ρ f'/f is {_at(w, log_ratio, no_bell_2)}"
        )
    if (bad := (log_ratio == LOG_RATIO_LIMIT) & (w > VANISHED)).any():
        return f"(iii), ρ f'/f vanishes as ρ grows: it is still {_at(w, log_ratio, bad)}"
    return None


def _rises_outwards(values: Tensor) -> Tensor:
    """Mark the values that exceed a value closer to ρ = 1: [2, N] -> [2, N]."""
    middle = values.shape[1] // 2
    lowest_right = values[:, middle:].cummin(1).values
    lowest_left = values[:, : middle + 1].flip(1).cummin(1).values.flip(1)
    return values > torch.cat([lowest_left[:, :-1], lowest_right], 1) + TOLERANCE


def _evaluate(gate_for: GateFor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log f and w, its derivative: [2, N] -> [2, N], [2, N]."""
    with torch.enable_grad():
        log_ratio = log_ratio.detach().requires_grad_()
        log_f = gate_for(torch.tensor([-1.0, 1.0]), log_ratio.dtype)(log_ratio)
        if log_f.shape != log_ratio.shape:
            raise ValueError(f"it returns the shape {list(log_f.shape)}")
        (w,) = torch.autograd.grad(log_f.sum(), log_ratio)
    return log_f.detach(), w


def _grid(dtype: torch.dtype) -> Tensor:
    """Make a grid of log ratios [2, N] over ±LOG_RATIO_LIMIT, dense around 0, where gates with small temperatures bend."""
    half = torch.linspace(0, 5, 1001, dtype=torch.float64).sinh() * (LOG_RATIO_LIMIT / math.sinh(5))
    half[-1] = LOG_RATIO_LIMIT
    return torch.cat([-half.flip(0)[:-1], half]).to(dtype).expand(2, -1)


def _at(values: Tensor, log_ratio: Tensor, bad: Tensor) -> str:
    """Format the value marked in `bad` that is closest to ρ = 1, with its ratio and the sign of its advantage."""
    row, column = min(bad.nonzero().tolist(), key=lambda index: abs(log_ratio[index[0], index[1]].item()))
    sign = "Â > 0" if row else "Â <= 0"
    return f"{values[row, column].item():.6g} at ρ = {math.exp(log_ratio[row, column].item()):.4g} ({sign})"
