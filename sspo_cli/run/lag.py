"""Sampling with weights of earlier rollouts, as an asynchronous sampler does: `rollout.lag`."""

from collections.abc import Iterator
from contextlib import contextmanager

from sspo_cli.run.state import Run
from sspo_cli.run.weights import given_weights, trained_weights


@contextmanager
def behaviour_policy(run: Run) -> Iterator[None]:
    """Give the policy the weights that it had `rollout.lag` rollout batches ago, for the time of a `with`.

    Until there are so many, those of the first. The weights at the start of the last rollouts are part of the run's state,
    which changes only if the `with` ends well.
    """
    lag = run.options.rollout.lag
    if not lag:
        yield
        return
    recent = [*run.state.recent_weights[-lag:], trained_weights(run.policy)]
    with given_weights(run.policy, recent[0]):
        yield
    run.state.recent_weights = recent
