"""Log-probabilities of given tokens, without ever holding the whole [tokens × vocabulary] logits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 2**25  # logits held at a time: 128 MiB in float32


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """log softmax(head(hidden) / temperature) at the targets, and the entropy of that distribution.

    hidden [N, H], targets [N] -> logprobs [N] float32, entropy [N] float32 without gradient (nats).
    Each chunk of tokens is projected on the vocabulary, reduced and forgotten; the backward pass projects it again.
    """
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    if len(hidden) <= rows:
        return _chunk_logprobs(hidden, targets, head, temperature)
    chunks = [
        checkpoint(_chunk_logprobs, h, y, head, temperature, use_reentrant=False, preserve_rng_state=False)
        for h, y in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    logprobs, entropy = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _chunk_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    normalizer = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normalizer
    with torch.no_grad():
        probabilities = (logits - normalizer.unsqueeze(-1)).exp_()
        entropy = normalizer - (probabilities * logits).sum(dim=-1)
    return logprobs, entropy
