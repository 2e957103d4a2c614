"""Log ratios d = log ρ made safe, and the mean over a completion's own tokens."""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # e^20 is 5e8: further out no gate differs from its limit, and none overflows in float32


def clean_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Make log ratios [B, T] safe: float32 or wider, 0 at masked positions, within ±LOG_RATIO_LIMIT without gradient there.

    Masked by `where` and before any exp: 0 · inf would be NaN, in the gradient even where the value is unused.
    """
    dtype = torch.promote_types(log_ratio.dtype, torch.float32)
    return torch.where(mask.bool(), log_ratio.to(dtype), 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the own tokens of each row, 1/|y_i| Σ_t; 0 for a row without any: [B, T], boolean [B, T] -> [B]."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
