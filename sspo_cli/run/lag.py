"""Sampling with the weights of an earlier rollout (`rollout.lag`), as an asynchronous sampler does."""

from collections.abc import Iterator
from contextlib import contextmanager

from sspo_cli.run.state import Run
from sspo_cli.run.weights import given_weights, trained_weights


@contextmanager
def behaviour_policy(run: Run) -> Iterator[None]:
    """Give the policy, within the block, the weights that it had `rollout.lag` rollout batches ago.

    Earlier in the run, the weights of the first rollout batch are used. The weights at the start of the last rollouts are part
    of the run's state, which changes only if the block ends without an exception.
    """
    lag = run.options.rollout.lag
    if not lag:
        yield
        return
    recent = [*run.state.recent_weights[-lag:], trained_weights(run.policy)]
    with given_weights(run.policy, recent[0]):
        yield
    run.state.recent_weights = recent
