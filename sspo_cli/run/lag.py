"""Sampling with the weights of an earlier rollout (`rollout.lag`), as an asynchronous sampler does."""

from collections.abc import Iterator
from contextlib import contextmanager

from sspo_cli.run.state import Run
from sspo_cli.run.weights import given_weights, trained_weights


@contextmanager
def behaviour_policy(run: Run) -> Iterator[None]:
    """Replace the policy's weights within the block with its weights of `rollout.lag` rollout batches ago.

    In the first `rollout.lag` batches, the weights of the first rollout batch are used. If the block ends without an exception,
    the current weights are added to `run.state.recent_weights`.
    """
    lag = run.options.rollout.lag
    if not lag:
        yield
        return
    recent = [*run.state.recent_weights[-lag:], trained_weights(run.policy)]
    with given_weights(run.policy, recent[0]):
        yield
    run.state.recent_weights = recent
