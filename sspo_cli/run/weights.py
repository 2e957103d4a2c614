"""Temporary replacement of a policy's weights, by weights of an earlier rollout or of the reference policy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sspo_cli.policy.model import Policy
from sspo_cli.policy.sharding import shard_like, whole


def trained_weights(policy: Policy) -> list[Tensor]:
    """Return a copy of the trained weights on the CPU; for LoRA, these are the adapters. Each rank gets the full weights."""
    return [whole(parameter.detach()).to("cpu", copy=True) for parameter in policy.parameters]


@contextmanager
def given_weights(policy: Policy, weights: Sequence[Tensor]) -> Iterator[None]:
    """Replace the policy's trained weights with `weights` within the block, then restore the original weights."""
    current = trained_weights(policy)
    _set(policy, weights)
    try:
        yield
    finally:
        _set(policy, current)


@torch.no_grad()
def _set(policy: Policy, weights: Sequence[Tensor]) -> None:
    for parameter, value in zip(policy.parameters, weights, strict=True):
        parameter.copy_(shard_like(value, parameter))
