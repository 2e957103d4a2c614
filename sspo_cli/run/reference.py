"""The reference policy of the KL penalty: the policy that RL starts from, after the cold start if there is one.

The run folder stores the trained weights of the reference policy. If LoRA is used, these are only the adapters; without a cold
start, new adapters do not change the model, so that the reference is the original model. To compute the log-probabilities of
the reference, its trained weights temporarily replace the policy's.
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

NAME = "reference.pt"  # file name in the run folder


def keep_reference(folder: Path, policy: Policy) -> Sequence[Tensor]:
    """Save the policy's current trained weights to the run folder as the reference's weights, and return them."""
    weights, content = trained_weights(policy), BytesIO()
    torch.save(weights, content)
    ranks.on_first(lambda: write_bytes_atomic(folder / NAME, content.getvalue()))
    return weights


def read_reference(folder: Path, policy: Policy) -> Sequence[Tensor]:
    """Read the reference's weights for a resumed run. Raises UserError if they are missing or damaged."""
    path = folder / NAME
    if not path.exists():
        raise UserError(
            f"{path} with the reference policy of learning.kl is missing, so the run cannot continue; start a new run"
        )
    with border(f"the reference policy {path} cannot be used; start a new run"):
        weights = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [weight.shape for weight in weights]
        if shapes != [parameter.shape for parameter in policy.parameters]:
            raise ValueError("its weights do not have the shapes of the policy's weights")
    return weights


def fill_reference(run: Run, minibatches: Sequence[Tensor]) -> None:
    """Store the reference policy's log-probabilities in the rollout batch, if there is a KL penalty."""
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
