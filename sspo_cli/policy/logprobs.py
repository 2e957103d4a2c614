"""Log-probabilities of given tokens, computed without storing the whole [tokens × vocabulary] logits.

Axes: N tokens, H hidden states, V words of the vocabulary. The words are processed in blocks, so that the weights are read once
in the forward pass and once in the backward pass, and the intermediate results of a block stay in the processor's cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Logits of a block in float32: 16 MiB on a CPU, about the size of its cache; 1 GiB on a GPU.
BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """The transform of the projection's product: a scale (Granite, Cohere), then a soft cap (Gemma-2).

    logits = cap · tanh(scale · product / cap), or scale · product without a cap.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, product: Tensor) -> Tensor:
        logits = product if self.scale == 1.0 else product * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


IDENTITY = LogitTransform()


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    transform: LogitTransform = IDENTITY,
) -> tuple[Tensor, Tensor]:
    """Compute log softmax(transform(hidden · weightᵀ + bias) / temperature) at the targets, and the entropy of this softmax.

    hidden [N, H], targets [N], weight [V, H], bias [V] -> logprobs [N] float32, entropy [N] float32 without gradient (nats).
    Computed in float32 for inputs of any dtype, because the rounding error of bfloat16 logits would exceed the differences
    between the compared policies.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.float(), weight.float()
        if bias is not None:  # as one more weight of each word, with a hidden state of 1
            hidden = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
            weight = torch.cat([weight, bias.float().unsqueeze(1)], dim=1)
        if transform.cap is None:
            return _TokenLogprobs.apply(hidden / (temperature / transform.scale), weight, targets, None)
        hidden = hidden / (transform.cap / transform.scale)
        return _TokenLogprobs.apply(hidden, weight, targets, transform.cap / temperature)


class _TokenLogprobs(torch.autograd.Function):
    """Processes blocks of words with an online softmax, which is rescaled when a block has a higher logit.

    The logits are z = hidden · weightᵀ, or cap · tanh(z). The backward pass recomputes the probabilities of each block.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
        highest = hidden.new_full((len(hidden), 1), torch.finfo(hidden.dtype).min)
        total, moment = torch.zeros_like(highest), torch.zeros_like(highest)  # Σ e^x and Σ e^x x, x = logit - highest
        chosen = torch.zeros_like(highest)  # the targets' logits, from the same TF32 product
        for start, block, logits in _blocks(hidden, weight):
            torch.mm(hidden, block.T, out=logits)
            if cap is not None:
                logits.tanh_().mul_(cap)
            columns, here = _columns(targets, start, len(block))
            chosen += logits.gather(1, columns) * here
            top = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
            shift = highest - top
            moment = shift.exp() * (moment + shift * total)
            total = shift.exp() * total
            highest = top
            above = logits.sub_(top)
            exponentials = above.exp()
            total += exponentials.sum(dim=1, keepdim=True)
            moment += torch.linalg.vecdot(exponentials, above).unsqueeze(1)
        normalizer = highest + total.log()
        logprobs = (chosen - normalizer).squeeze(1)
        entropy = (total.log() - moment / total).squeeze(1)
        ctx.save_for_backward(hidden, weight, targets, normalizer)
        ctx.cap = cap
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Apply d logprob / d logit = [word is the target] - probability, and d logit / d z = cap · (1 - tanh²(z))."""
        hidden, weight, targets, normalizer = ctx.saved_tensors
        gradient = gradient.unsqueeze(1)
        of_hidden = torch.zeros_like(hidden)
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start, block, logits in _blocks(hidden, weight):
            torch.mm(hidden, block.T, out=logits)
            slope = None
            if ctx.cap is not None:
                logits.tanh_()
                slope = ctx.cap * (1 - logits.square())
                logits.mul_(ctx.cap)
            of_logits = logits.sub_(normalizer).exp_().mul_(-gradient)
            columns, here = _columns(targets, start, len(block))
            of_logits.scatter_add_(1, columns, gradient * here)
            if slope is not None:
                of_logits.mul_(slope)
            of_hidden.addmm_(of_logits, block)
            if of_weight is not None:
                torch.mm(of_logits.T, hidden, out=of_weight[start : start + len(block)])
        return of_hidden, of_weight, None, None


def _columns(targets: Tensor, start: int, words: int) -> tuple[Tensor, Tensor]:
    """Return the index of each target in the block of `words` words from `start`, and a mask of those in it: [N, 1] each."""
    columns = targets.unsqueeze(1) - start
    return columns.clamp(0, words - 1), (columns >= 0) & (columns < words)


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (first word, weights [words, H], buffer for logits [N, words]) for each block; all share the same memory."""
    words = max(1, min(len(weight), BLOCK_ELEMENTS[hidden.device.type] // max(1, len(hidden))))
    buffer = hidden.new_empty(len(hidden) * words)
    for start in range(0, len(weight), words):
        block = weight[start : start + words]
        yield start, block, buffer[: len(hidden) * len(block)].view(len(hidden), len(block))
