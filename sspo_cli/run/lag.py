"""Sampling with weights of earlier rollouts, as an asynchronous sampler does: `rollout.lag`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sspo_cli.policy.model import Policy
from sspo_cli.policy.sharding import spread_like, whole
from sspo_cli.run.state import Run


@contextmanager
def behaviour_policy(run: Run) -> Iterator[None]:
    """Give the policy the weights that it had `rollout.lag` rollout batches ago, for the time of a `with`.

    Until there are so many, those of the first. The weights at the start of the last rollouts are part of the run's state,
    which changes only if the `with` ends well.
    """
    lag, policy = run.options.rollout.lag, run.policy
    if not lag:
        yield
        return
    current = _weights(policy)
    recent = [*run.state.recent_weights[-lag:], current]
    _set_weights(policy, recent[0])
    try:
        yield
    finally:
        _set_weights(policy, current)
    run.state.recent_weights = recent


def _weights(policy: Policy) -> list[Tensor]:
    return [whole(parameter.detach()).to("cpu", copy=True) for parameter in policy.parameters]


@torch.no_grad()
def _set_weights(policy: Policy, weights: list[Tensor]) -> None:
    for parameter, value in zip(policy.parameters, weights, strict=True):
        parameter.copy_(spread_like(value, parameter))
