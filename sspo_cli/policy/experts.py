"""Mixtures of experts: the dtype of their computation, and a record of which experts tokens choose.

Experts are computed in the dtype of autocast, like all other layers. autocast does not cover their grouped matrix product,
which transformers computes in the dtype of the weights.
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
IN_AUTOCAST = "grouped_mm_in_autocast"  # transformers' implementation in the dtype of autocast
_kept: dict[Tensor, Tensor] | None = None  # within `kept_copies`: weight of experts -> its copy


def follow_autocast(model: Any) -> None:
    """Change a model in place to compute its experts in the dtype of autocast. A model without experts is unchanged."""
    if any(layer.config._experts_implementation == GROUPED for layer in expert_layers(model)):
        model.set_experts_implementation(IN_AUTOCAST)


def expert_layers(model: nn.Module) -> list[Any]:
    """Return the modules that hold all experts of a layer and call transformers' interface for experts."""
    return [module for module in model.modules() if hasattr(module, "_apply_gate")]


def looped_experts(model: nn.Module) -> list[nn.Module]:
    """Return the modules of experts that the model itself computes in a loop, which skips weights that no token chose."""
    named = model.named_modules()
    return [module for name, module in named if name.endswith(".experts") and not hasattr(module, "_apply_gate")]


def complete_gradients(model: nn.Module) -> None:
    """Set missing gradients of experts to 0, so that experts that no token chose are treated alike in all models.

    Experts that a model does not compute in a loop, and experts that are sharded over ranks, have this gradient already.
    """
    for experts in looped_experts(model):
        for weight in experts.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)


@contextmanager
def kept_copies() -> Iterator[None]:
    """Cache copies of expert weights within the block if no gradient is needed, as autocast does for linear layers."""
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def _forward(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute the experts `chosen` [N, k], weighted by `weights` [N, k], for hidden states [N, H] -> [N, H]."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        copies = {name: _copy(p, dtype) for name, p in experts.named_parameters(recurse=False) if p.dtype != dtype}
        if copies:  # then this function is called again with the copies
            return functional_call(experts, copies, (hidden, chosen, weights))
    return grouped_mm_experts_forward(experts, hidden, chosen, weights)


def _copy(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    if _kept is None or torch.is_grad_enabled():
        return parameter.to(dtype)
    if parameter not in _kept:
        _kept[parameter] = parameter.to(dtype)
    return _kept[parameter]


class Routes:
    """The experts that tokens choose in each of a model's L layers with E experts. Records only within `recorded`."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers, self.experts = len(layers), int(layers[0].num_experts)
        self._places: Tensor | None = None
        self._chosen: dict[int, Tensor] = {}  # [N, k] by layer, of the last forward pass
        self._numbers = torch.randint(2**31, (self.experts,), generator=torch.Generator().manual_seed(0))
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._note, number))

    @classmethod
    def of(cls, model: nn.Module) -> "Routes | None":
        """Return a recorder for a model, or None if the model has no experts or if its layers have unequal numbers of experts."""
        layers = expert_layers(model)
        return cls(layers) if len({layer.num_experts for layer in layers}) == 1 else None

    @contextmanager
    def recorded(self, places: Tensor) -> Iterator[None]:
        """Record the choices of a forward pass for the tokens at `places` [N], indices into the flattened input."""
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
        """Return a number for the set of experts that each token chose in each layer: [N, L] int32, on the CPU.

        The number does not depend on the order of the experts. Two different sets have the same number with probability 2^-31.
        """
        numbers = self._numbers.to(self._chosen[0].device)
        sums = [numbers[self._chosen[number]].sum(dim=1) % 2**31 for number in range(self.layers)]
        return torch.stack(sums, dim=1).to("cpu", torch.int32)


def expert_load(counts: Tensor) -> float:
    """Compute how often the most frequent expert of a layer is chosen, relative to the mean over its experts.

    counts [L, E] -> mean over layers, from 1 (all experts equally often) to E / k (always the same k experts).
    """
    return (counts.amax(dim=1) / counts.double().mean(dim=1)).mean().item()


ExpertsInterface.register(IN_AUTOCAST, _forward)
