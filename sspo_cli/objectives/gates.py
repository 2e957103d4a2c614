"""The gates f of the paper, each as log f of the log ratio d = log ρ, so that nothing overflows: [B, T] -> [B, T].

A gate's signature declares its options: `tau` becomes tau_neg and tau_pos and arrives as a [B, 1] tensor, picked by the
sign of each advantage; `positive` (Â > 0, [B, 1]) arrives unasked; every other parameter is an option of the same name.
A new gate is one function here and its name in SSPO_GATES.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Gate = Callable[..., Tensor]


def clip(log_ratio: Tensor, positive: Tensor, eps_low: float, eps_high: float, clip_space: str = "ratio") -> Tensor:
    """Eq. (1): min(ρ, 1 + ε_high) where Â > 0, else max(ρ, 1 - ε_low).

    In clip_space "log" the bounds are ε away in log ρ instead, which is what the released code of GMPO does.
    """
    low, high = (-eps_low, eps_high) if clip_space == "log" else (math.log1p(-eps_low), math.log1p(eps_high))
    return torch.where(positive, log_ratio.clamp(max=high), log_ratio.clamp(min=low))


def sigmoid(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Eq. (9), the gate of SAPO: σ(τ(ρ - 1)) · 4/τ, and not 1 but 2/τ at ρ = 1."""
    return logsigmoid(tau * torch.expm1(log_ratio)) + torch.log(4 / tau)


def expsig(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Eq. (18): exp(4τ σ((ρ - 1)/τ) - 2τ)."""
    return 4 * tau * torch.sigmoid(torch.expm1(log_ratio) / tau) - 2 * tau


def expatan(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Eq. (19): exp(τ arctan((ρ - 1)/τ))."""
    return tau * torch.atan(torch.expm1(log_ratio) / tau)


def gumbel(log_ratio: Tensor) -> Tensor:
    """Eq. (20): exp(-exp(-(ρ - 1)) + 1)."""
    return 1 - torch.exp(-torch.expm1(log_ratio))


def atanlog(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Eqs. (15), (21), the paper's choice: exp(τ arctan(log ρ / τ))."""
    return tau * torch.atan(log_ratio / tau)


def siglog(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Eq. (22): exp(4τ σ(log ρ / τ) - 2τ)."""
    return 4 * tau * torch.sigmoid(log_ratio / tau) - 2 * tau


SSPO_GATES: dict[str, Gate] = {gate.__name__: gate for gate in (expsig, expatan, gumbel, atanlog, siglog)}
GATES: dict[str, Gate] = {"clip": clip, "sigmoid": sigmoid, **SSPO_GATES}
