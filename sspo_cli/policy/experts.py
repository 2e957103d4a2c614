"""Mixtures of experts: the dtype of their computation, and a record of which experts tokens choose.

Experts are computed in the dtype of autocast, as all other layers are. Their grouped product is not among autocast's
operations, so transformers alone computes it in the dtype of the weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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
    if any(layer.config._experts_implementation == GROUPED for layer in expert_layers(model)):
        model.set_experts_implementation(IN_AUTOCAST)


def expert_layers(model: nn.Module) -> list[Any]:
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
        copies = {name: _copy(p, dtype) for name, p in experts.named_parameters(recurse=False) if p.dtype != dtype}
        if copies:  # with which this function is called again
            return functional_call(experts, copies, (hidden, chosen, weights))
    return grouped_mm_experts_forward(experts, hidden, chosen, weights)


def _copy(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    if _kept is None or torch.is_grad_enabled():
        return parameter.to(dtype)
    if parameter not in _kept:
        _kept[parameter] = parameter.to(dtype)
    return _kept[parameter]


class Routes:
    """The experts that tokens choose in each of a model's L layers of E experts; recorded within `recorded` alone."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers, self.experts = len(layers), int(layers[0].num_experts)
        self._places: Tensor | None = None
        self._chosen: dict[int, Tensor] = {}  # [N, k] by layer, of the last forward pass
        self._numbers = torch.randint(2**31, (self.experts,), generator=torch.Generator().manual_seed(0))
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._note, number))

    @classmethod
    def of(cls, model: nn.Module) -> "Routes | None":
        """Watch the layers of a model; return None if it has no experts, or layers of unequal numbers of them."""
        layers = expert_layers(model)
        return cls(layers) if len({layer.num_experts for layer in layers}) == 1 else None

    @contextmanager
    def recorded(self, places: Tensor) -> Iterator[None]:
        """Record the choices of a forward pass for the tokens at `places` [N], counted over all rows of its input."""
        self._places, self._chosen = places, {}
        try:
            yield
        finally:
            self._places = None

    def _note(self, number: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._places is not None:
            self._chosen[number] = inputs[1].detach().flatten(0, -2)[self._places].clamp(max=self.experts - 1)

    def counts(self) -> Tensor:
        """Count how often each expert was chosen: [L, E] int64, on the CPU."""
        chosen = [self._chosen[number].flatten() for number in range(self.layers)]
        return torch.stack([torch.bincount(experts, minlength=self.experts) for experts in chosen]).cpu()

    def codes(self) -> Tensor:
        """Return a number for each set of experts that a token chose, whatever their order: [N, L] int32, on the CPU.

        Unequal sets have equal numbers with a probability of 2^-31.
        """
        numbers = self._numbers.to(self._chosen[0].device)
        sums = [numbers[self._chosen[number]].sum(dim=1) % 2**31 for number in range(self.layers)]
        return torch.stack(sums, dim=1).to("cpu", torch.int32)


def expert_load(counts: Tensor) -> float:
    """Compute how often the most frequent expert of a layer is chosen, relative to the mean over its experts.

    counts [L, E] -> the mean over layers, from 1 (all as often) to E / k (always the same k).
    """
    return (counts.amax(dim=1) / counts.double().mean(dim=1)).mean().item()


ExpertsInterface.register(IN_AUTOCAST, _forward)
