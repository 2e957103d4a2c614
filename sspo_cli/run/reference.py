"""The reference policy of the KL penalty: the policy that RL starts from, after the cold start if there is one.

Its trained weights are kept in the run folder, with LoRA the adapters alone: those of a run without a cold start change
nothing, so that the reference is the named model. For the time of a pass they take the place of the policy's.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from sspo_cli import ranks
from sspo_cli.errors import UserError, border
from sspo_cli.policy.learner import fill_reference_logprobs, splits_groups_apart
from sspo_cli.policy.model import Policy
from sspo_cli.run.state import Run
from sspo_cli.run.weights import given_weights, trained_weights
from sspo_cli.tracking.files import write_bytes_atomic

NAME = "reference.pt"  # in the run folder


def keep_reference(folder: Path, policy: Policy) -> Sequence[Tensor]:
    """Write the policy's trained weights, which are the reference from here on, and return them."""
    weights, content = trained_weights(policy), BytesIO()
    torch.save(weights, content)
    ranks.on_first(lambda: write_bytes_atomic(folder / NAME, content.getvalue()))
    return weights


def read_reference(folder: Path, policy: Policy) -> Sequence[Tensor]:
    """Read the weights of the reference of a run that is resumed. Raises UserError if they are missing or damaged."""
    path = folder / NAME
    if not path.exists():
        raise UserError(
            f"{path} is missing, the reference policy of learning.kl; the run cannot continue, start a new one"
        )
    with border(f"the reference policy {path} cannot be used; start a new run"):
        weights = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [weight.shape for weight in weights]
        if shapes != [parameter.shape for parameter in policy.parameters]:
            raise ValueError("it has other weights than the policy")
    return weights


def fill_reference(run: Run, minibatches: Sequence[Tensor]) -> None:
    """Write the log-probabilities by the reference policy into the rollout batch, if there is a KL penalty."""
    if run.reference is not None:
        batch, options = run.state.batch, run.options
        assert batch is not None
        with given_weights(run.policy, run.reference):
            fill_reference_logprobs(
                run.policy,
                batch,
                minibatches,
                options.learning.token_budget,
                options.rollout.temperature,
                splits_groups_apart(run.policy, options.learning),
            )
