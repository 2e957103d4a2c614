"""Terms of other trainers that are not in the paper: a KL penalty, and clipping by entropy."""

import torch
from torch import Tensor

from sspo_cli.objectives.ratios import LOG_RATIO_LIMIT, token_mean

SMALL_ENTROPY = 1e-8


def reference_kl(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Estimate KL(π_θ ‖ π_ref) for each completion by k3: 1/|y_i| Σ_t (e^δ - 1 - δ), δ = log π_ref - log π_θ.

    logprobs, reference_logprobs [B, T]; boolean mask [B, T]  ->  [B], differentiable in the logprobs, 0 without unmasked tokens

    This is the penalty of GRPO (arXiv 2402.03300, eq. 4), which is never negative. Its gradient is (1 - e^δ) ∇log π_θ. As in
    TRL and verl, there is no importance correction, although the behaviour policy sampled the tokens.
    """
    delta = torch.where(mask, reference_logprobs - logprobs, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return token_mean(torch.expm1(delta) - delta, mask)


def has_kept_entropy(entropy: Tensor, old_entropy: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Decide for each token whether H(π_θ) / H(π_old) lies between the bounds: [B, T], [B, T] -> boolean [B, T].

    Entropy ratio clipping (arXiv 2512.05591) removes the gradient of tokens outside the bounds, for every gate, but keeps
    their values. As in the released code, the bounds are excluded and 1e-8 is added to both entropies, in nats, so that the
    ratio of two zeros is 1.
    """
    low, high = bounds
    ratio = (entropy + SMALL_ENTROPY) / (old_entropy + SMALL_ENTROPY)
    return (low < ratio) & (ratio < high)
