"""Group-relative advantages, eq. (4)."""

from typing import Literal

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, std: Literal["sample", "population", "none"] = "sample") -> Tensor:
    """Compute eq. (4), Â_i = (r_i - mean r) / std r within each group.

    rewards [P, G] -> advantages [P, G]

    std  by what to divide: "sample" (÷ G - 1), "population" (÷ G), or "none": only subtract the mean

    A group whose rewards are all equal says nothing: its advantages are exactly 0. Whether they are equal is decided on
    the rewards themselves, since the floating-point deviation of equal numbers need not be 0.
    """
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if std != "none":
        advantages = advantages / rewards.std(-1, keepdim=True, correction=1 if std == "sample" else 0)
    equal = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    return advantages.masked_fill(equal, 0.0)
