"""Group-relative advantages, eq. (4)."""

from typing import Literal

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, std: Literal["sample", "population", "none"] = "sample") -> Tensor:
    """Compute eq. (4), Â_i = (r_i - mean r) / std r within each group.

    rewards [P, G] -> advantages [P, G]

    std  the divisor: "sample" (standard deviation with G - 1), "population" (with G), or "none" (subtract the mean only)

    The advantages of a group with equal rewards are exactly 0. The rewards themselves are compared, because the computed
    standard deviation of equal floating-point numbers need not be 0.
    """
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if std != "none":
        advantages = advantages / rewards.std(-1, keepdim=True, correction=1 if std == "sample" else 0)
    equal = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return advantages.masked_fill(equal, 0.0)
