"""Sampling with the weights of an earlier rollout (`rollout.lag`), as an asynchronous sampler does."""

from collections.abc import Iterator
from contextlib import contextmanager

from sspo_cli.run.state import Run
from sspo_cli.run.weights import given_weights, trained_weights


@contextmanager
def behaviour_policy(run: Run) -> Iterator[None]:
    """Give the policy, within the block, the weights that it had `rollout.lag` rollout batches ago.

    In the first `rollout.lag` batches, the weights of the first rollout batch are used. The run's state stores the weights at
    the start of recent batches; it changes only if the block ends without an exception.
    """
    lag = run.options.rollout.lag
    if not lag:
        yield
        return
    recent = [*run.state.recent_weights[-lag:], trained_weights(run.policy)]
    with given_weights(run.policy, recent[0]):
        yield
    run.state.recent_weights = recent
