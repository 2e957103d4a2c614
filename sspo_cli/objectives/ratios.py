"""Sanitized log ratios d = log ρ, and the mean over a completion's own tokens."""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # e^20 is 5e8: there, bounded gates have reached their limits, and no gate overflows in float32


def clean_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Sanitize log ratios [B, T]: float32 or wider, 0 at masked positions, clamped to ±LOG_RATIO_LIMIT.

    Masking uses `where` before any exp, because a product of 0 and inf would be NaN and make the gradient NaN.
    """
    dtype = torch.promote_types(log_ratio.dtype, torch.float32)
    return torch.where(mask.bool(), log_ratio.to(dtype), 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the own tokens of each row, 1/|y_i| Σ_t; 0 for a row without tokens: [B, T], boolean [B, T] -> [B]."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
