"""The experts of a mixture, computed in the dtype of autocast as all other layers are.

Their grouped product is not among autocast's operations, so transformers computes it in the dtype of the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

GROUPED = "grouped_mm"  # transformers' implementation
IN_AUTOCAST = "grouped_mm_in_autocast"  # the same, in the dtype of autocast
_kept: dict[Tensor, Tensor] | None = None  # copies of experts' weights by the weight, within `kept_copies`


def follow_autocast(model: Any) -> None:
    """Have the experts of a model follow autocast, in place; do nothing for a model without any."""
    implementations = model.get_experts_implementation()
    if expert_layers(model) and GROUPED in implementations.values():
        model.set_experts_implementation(
            {key: IN_AUTOCAST if value == GROUPED else value for key, value in implementations.items()}
        )


def expert_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold all experts of a layer and call transformers' interface for experts."""
    return [module for module in model.modules() if hasattr(module, "_apply_gate")]


@contextmanager
def kept_copies() -> Iterator[None]:
    """Keep the copies of weights that are made without gradients within it, as autocast keeps those of linear layers."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def _forward(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute the experts that are chosen [N, k] with weights [N, k] for hidden states [N, H] -> [N, H]."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        others = {name: p for name, p in experts.named_parameters(recurse=False) if p.dtype != dtype}
        if others:
            copies = {name: _copy(parameter, dtype) for name, parameter in others.items()}
            return functional_call(experts, copies, (hidden, chosen, weights))
    return grouped_mm_experts_forward(experts, hidden, chosen, weights)


def _copy(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    if _kept is None or torch.is_grad_enabled():
        return parameter.to(dtype)
    if parameter not in _kept:
        _kept[parameter] = parameter.to(dtype)
    return _kept[parameter]


ExpertsInterface.register(IN_AUTOCAST, _forward)
