"""Measurement of the scale and the soft cap that a model applies after its vocabulary projection."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sspo_cli import ranks
from sspo_cli.errors import UserError, first_line, says_memory_is_full
from sspo_cli.policy.logprobs import IDENTITY, LogitTransform

# Outputs of the projection from which scale and cap are computed. Powers of two are exact in every dtype.
SMALL, LARGE = 2.0**-10, 2.0**20


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set every module to evaluation mode within the block."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def measure_transform(model: Any) -> LogitTransform:
    """Measure a model's scale and soft cap in a forward pass that gets known values as the projection's output.

    They are not read from the config, because configs use many names for them, and one name with opposite meanings. Raises
    UserError if the model has no vocabulary projection or transforms its logits in any other way.
    """
    name, head = type(model).__name__, model.get_output_embeddings()
    if head is None or not hasattr(head, "weight"):
        raise UserError(f"{name} has no vocabulary projection that sspo can train; choose a causal language model")
    words = head.weight.shape[0]
    signs = torch.arange(words) % 2 * 2.0 - 1.0
    product = signs * torch.logspace(-10, 20, words, base=2.0)
    product[:2] = torch.tensor([-SMALL, LARGE])
    product = product.to(head.weight.device)
    device = model.get_input_embeddings().weight.device
    handle = head.register_forward_hook(lambda module, inputs, output: product.expand(*output.shape[:-1], -1))
    try:
        ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
        with evaluating(model):
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception as error:  # the model's own code may raise anything
        if says_memory_is_full(error) or ranks.says_lost(error):
            raise
        raise UserError(f"{name} cannot be computed on token ids alone: {first_line(error)}") from None
    finally:
        handle.remove()
    return _fit(name, product, logits.float())


def _fit(name: str, product: Tensor, logits: Tensor) -> LogitTransform:
    if logits.shape == (1, 1, len(product)):
        logits = logits[0, 0]
        if torch.equal(logits, product):
            return IDENTITY
        scale, highest = (logits[0] / product[0]).item(), logits[1].abs().item()
        cap = None if highest > 0.5 * abs(scale) * LARGE else highest
        transform = LogitTransform(scale, cap)
        expected = transform(product)
        if ((logits - expected).abs() <= 1e-5 * expected.abs() + 1e-8).all():
            return transform
    raise UserError(
        f"{name} transforms its logits by more than a scale and a soft cap, which sspo cannot train; choose another model"
    )
