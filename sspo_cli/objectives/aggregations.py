"""Aggregations of the gated tokens of a completion into its weight S_i.

An aggregation takes a gate (log ratio -> log f, elementwise), log ratios [B, T] that are finite everywhere, and a boolean
mask [B, T]; it returns the weights [B].
"""

from collections.abc import Callable

from torch import Tensor

from sspo_cli.objectives.ratios import token_mean

Aggregation = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def arithmetic(gate: Callable[[Tensor], Tensor], log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Compute eqs. (2), (8): 1/|y_i| Σ_t f(ρ_it); 0 for a completion without tokens."""
    return token_mean(gate(log_ratio).exp(), mask)


def geometric(gate: Callable[[Tensor], Tensor], log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Compute eqs. (7), (11): (Π_t f(ρ_it))^(1/|y_i|); 1 for a completion without tokens."""
    return token_mean(gate(log_ratio), mask).exp()


def sequence(gate: Callable[[Tensor], Tensor], log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Compute eqs. (5), (6): f(s_i), s_i = (Π_t ρ_it)^(1/|y_i|); f(1) for a completion without tokens."""
    log_sequence_ratio = token_mean(log_ratio, mask)
    return gate(log_sequence_ratio[:, None])[:, 0].exp()
