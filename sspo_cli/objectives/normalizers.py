"""The factor c_i of every completion in the objective J = Σ_i c_i · S_i · Â_i of a minibatch.

A normalizer takes the lengths |y_i| in own tokens of *all* N completions of the minibatch, [N], and the token limit L of a
completion; it returns the factors [N]. J is therefore independent of the split into micro-batches. A completion without own
tokens has |y_i| = 0 and is still included in N.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Normalizer = Callable[[Tensor, int], Tensor]


def sequence(lengths: Tensor, limit: int) -> Tensor:
    """Return 1/N for each of the N completions, as in GRPO and eq. (2) of the paper: every completion has the same weight."""
    return torch.full_like(lengths, 1 / len(lengths), dtype=torch.float32)


def token(lengths: Tensor, limit: int) -> Tensor:
    """Compute |y_i| / Σ_j |y_j|: every token of the minibatch has the same weight.

    The sum is over the minibatch, as in verl and TRL. In DAPO's eq. (8) (arXiv 2503.14476) it is over the tokens of a group.
    """
    return lengths / lengths.sum().clamp(min=1)


def constant(lengths: Tensor, limit: int) -> Tensor:
    """Compute |y_i| / (N·L), as in Dr. GRPO (arXiv 2503.20783): every token has the same weight in every minibatch."""
    return lengths / (len(lengths) * limit)


def length(lengths: Tensor, limit: int) -> Tensor:
    """Compute |y_i| / N, as in LUSPO (arXiv 2602.05261): a completion is weighted by its length."""
    return lengths / len(lengths)


NORMALIZERS: dict[str, Normalizer] = {
    normalizer.__name__: normalizer for normalizer in (sequence, token, constant, length)
}
