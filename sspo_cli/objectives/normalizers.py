"""The factor c_i of every completion in the objective J = Σ_i c_i · S_i · Â_i of a minibatch.

A normalizer gets the numbers |y_i| of own tokens of *all* N completions of the minibatch, [N], and the limit L of a
completion's tokens; it gives the factors [N]. So J is independent of the split into micro-batches. A completion without a token
that counts has |y_i| = 0, and stays among the N.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Normalizer = Callable[[Tensor, int], Tensor]


def sequence(lengths: Tensor, limit: int) -> Tensor:
    """Compute 1/N, of the paper and of GRPO, eq. (2): every completion counts the same."""
    return torch.full_like(lengths, 1 / len(lengths), dtype=torch.float32)


def token(lengths: Tensor, limit: int) -> Tensor:
    """Compute |y_i| / Σ_j |y_j|: every token of the minibatch counts the same.

    As in verl and TRL. DAPO's eq. (8) (arXiv 2503.14476) has the sum over the tokens of a group.
    """
    return lengths / lengths.sum().clamp(min=1)


def constant(lengths: Tensor, limit: int) -> Tensor:
    """Compute |y_i| / (N·L), of Dr. GRPO (arXiv 2503.20783): every token counts the same in every minibatch."""
    return lengths / (len(lengths) * limit)


def length(lengths: Tensor, limit: int) -> Tensor:
    """Compute |y_i| / N, of LUSPO (arXiv 2602.05261): a completion counts as much as it is long."""
    return lengths / len(lengths)


NORMALIZERS: dict[str, Normalizer] = {
    normalizer.__name__: normalizer for normalizer in (sequence, token, constant, length)
}
