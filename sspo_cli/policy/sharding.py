"""Sharding of a model's weights, gradients and optimizer state over the ranks by torch's fully_shard (FSDP2)."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from sspo_cli import ranks
from sspo_cli.errors import UserError
from sspo_cli.policy.experts import looped_experts
from sspo_cli.policy.sharded_loading import put_parts, take_parts

T = TypeVar("T")
# Parameters of all layers up to which they are gathered together. To gather a small layer takes longer than to compute it.
GATHERED_TOGETHER = 10_000_000


def shard(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Shard the model over the ranks, in place. Each rank may hold the complete weights, or only the part it has read.

    dtype   compute dtype; gradients are summed in float32
    device  device of this rank

    Each decoder layer is gathered when it is used, in `dtype`. Embedding, last norm and vocabulary projection belong to the root
    module, because they may share a tensor. They are gathered within `compute`, in the dtype of the trained weights, because
    the projection is computed in float32. The layers of a small model also belong to the root module.
    """
    mesh = init_device_mesh(device.type, (ranks.size(),))
    parts = take_parts(model)
    layers = _separate_layers(model)
    if sum(weight.numel() for layer in layers for weight in layer.parameters()) <= GATHERED_TOGETHER:
        layers = []
    in_dtype = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    as_kept = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    # On a CPU, autocast leaves a layer norm out, which needs weights of at least its input's dtype.
    has_norms = device.type == "cpu" and any(isinstance(module, nn.LayerNorm) for module in model.modules())
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=as_kept if dtype == torch.float32 or has_norms else in_dtype)
    # The root, too, is sharded again after a forward pass without a backward pass. Otherwise model.parameters() would be the
    # gathered tensors, and an optimizer or a checkpoint that is made then would use those.
    fully_shard(model, mesh=mesh, mp_policy=as_kept, reshard_after_forward=True)
    for unit in (*layers, model):
        inside = set(unit.modules()).difference(*(layer.modules() for layer in layers if unit is model))
        if not inside.isdisjoint(looped_experts(model)):
            _reduce_unused(unit)
    put_parts(parts, device)
    model.compute = MethodType(_call, model)
    register_fsdp_forward_method(model, "compute")
    model.compute(int)  # so that the model, and not the first layer that is called, is the root


def _separate_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers that can be gathered one by one.

    They are not part of one another, and share no weight with the rest of the model: fully_shard would make two weights of a
    weight that two of its modules share, as in Zamba2, whose layers share blocks.
    """
    uses = Counter(weight for _, weight in model.named_parameters(remove_duplicate=False))
    layers: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for layer in model.modules():  # a layer precedes its parts
        if not isinstance(layer, GradientCheckpointingLayer) or layer in inside:
            continue
        own = Counter(weight for _, weight in layer.named_parameters(remove_duplicate=False))
        if all(uses[weight] == count for weight, count in own.items()):
            layers.append(layer)
            inside.update(layer.modules())
    return layers


def _reduce_unused(unit: Any) -> None:
    """Let ranks sum gradients of equal sizes, even if the tokens of a rank do not use a weight of this unit.

    Raises UserError if torch cannot do this.
    """
    if not hasattr(unit, "set_reduce_scatter_unused_params"):
        raise UserError(
            "the experts of this model may be unused by a rank, which the installed torch does not support; install torch 2.13 "
            "or newer, or use one process"
        )
    unit.set_reduce_scatter_unused_params(True, recurse=False)


def _call(model: Any, function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def compute(model: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that uses parts of the model, with their weights gathered as in the model's own forward pass.

    If gradients are enabled, a backward pass must follow. The root's weights stay gathered until then, because it needs them
    first.
    """
    if not hasattr(model, "compute"):
        return function(*arguments)
    with _staying_gathered([model] if torch.is_grad_enabled() else []):
        return model.compute(function, *arguments)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights on each rank as plain tensors, so that ranks may work independently within the block."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    with _staying_gathered(parts):
        for part in parts:
            part.unshard()
        if parts and next(model.parameters()).is_cuda:
            torch.cuda.synchronize()  # so that the caller can measure how long it takes
        try:
            yield
        finally:
            for part in parts:
                part.reshard()


@contextmanager
def _staying_gathered(parts: Sequence[FSDPModule]) -> Iterator[None]:
    """Do not shard the weights of these parts again after a forward pass within the block."""
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor that is sharded over the ranks. Return any other tensor unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that is sharded over the ranks. Return any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Shard a whole tensor over the ranks like `example`; return it unchanged if the example is not sharded."""
    if not isinstance(example, DTensor):
        return tensor
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements)
