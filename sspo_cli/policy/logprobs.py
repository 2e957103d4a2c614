"""Log-probabilities of given tokens, without ever holding the whole [tokens × vocabulary] logits."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits held at a time: 128 MiB in float32. A GPU takes 1 GiB, since every chunk reads the whole projection.
CHUNK_ELEMENTS = {"cpu": 2**25, "cuda": 2**28}


def token_logprobs(
    hidden: Tensor, targets: Tensor, project: Callable[[Tensor], Tensor], vocabulary: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """log softmax(project(hidden) / temperature) at the targets, and the entropy of that distribution.

    hidden [N, H], targets [N] -> logprobs [N] float32, entropy [N] float32 without gradient (nats).
    Each chunk of tokens is projected on the vocabulary, reduced and forgotten; the backward pass projects it again.
    """
    rows = max(1, CHUNK_ELEMENTS[hidden.device.type] // vocabulary)
    if len(hidden) <= rows:
        return _chunk_logprobs(hidden, targets, project, temperature)
    chunks = [
        checkpoint(_chunk_logprobs, h, y, project, temperature, use_reentrant=False, preserve_rng_state=False)
        for h, y in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    logprobs, entropy = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _chunk_logprobs(
    hidden: Tensor, targets: Tensor, project: Callable[[Tensor], Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    logits = project(hidden) / temperature
    normalizer = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normalizer
    with torch.no_grad():
        probabilities = (logits - normalizer.unsqueeze(-1)).exp_()
        entropy = normalizer - (probabilities * logits).sum(dim=-1)
    return logprobs, entropy
