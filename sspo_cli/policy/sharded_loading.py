"""Loading of a model in parts: each rank reads only its rows of each weight from the model's files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

from sspo_cli import ranks

READER = "transformers.distributed.sharding_utils"  # the part of transformers that reads rows, since 5.23


@contextmanager
def read_in_parts(kind: Any) -> Iterator[list[str]]:
    """Have models of this class that are loaded within it read in parts, as DTensors on the CPU.

    transformers lays a model out without memory, and then reads for each DTensor in it the rows of this rank. Yields a list
    that holds afterwards why a model was read whole by each rank; empty if it was not.
    """
    load, reasons = kind._load_pretrained_model, []

    def load_parts(model: Any, state_dict: Any, files: Any, config: Any) -> Any:
        if reason := _why_whole(config):
            reasons.append(reason)
        else:
            _shard_weights(model)
        return load(model, state_dict, files, config)

    kind._load_pretrained_model = staticmethod(load_parts)
    try:
        yield reasons
    finally:
        del kind._load_pretrained_model  # which shows the inherited one again


def _why_whole(config: Any) -> str | None:
    """Return why a model cannot be read in parts by transformers, as far as that depends on its files."""
    if find_spec(READER) is None:
        return "the installed transformers cannot read parts; install 5.23 or newer"
    if config.hf_quantizer is not None:
        return "its weights are quantized"
    converters = [entry for entry in config.weight_mapping or [] if isinstance(entry, WeightConverter)]
    if not all(_keeps_rows(operation) for converter in converters for operation in converter.operations):
        return "its files have weights that are cut or joined in another way than by rows"
    return None


def _keeps_rows(operation: Any) -> bool:
    """Report whether a conversion of rows of tensors gives the same rows of the converted tensor."""
    match operation:
        case MergeModulelist(dim=0):
            return True
        case Concatenate(dim=dim):
            return dim > 0
        case Transpose(dim0=first, dim1=second):
            return first > 0 and second > 0
    return False


def _shard_weights(model: nn.Module) -> None:
    """Replace the weights of a model on the meta device by DTensors there.

    Experts of which a rank would get none stay whole, because transformers cannot merge an empty list. Shard cuts like
    `torch.chunk`: 6 experts on 4 ranks are 2, 2, 2 and none.
    """
    mesh = init_device_mesh("cpu", (ranks.size(),))
    spread: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay so
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim > 2 and len(weight.chunk(ranks.size())) < ranks.size():
                continue
            if weight not in spread:
                rows = distribute_tensor(weight.detach(), mesh, [Shard(0)], src_data_rank=None)
                spread[weight] = nn.Parameter(rows, requires_grad=weight.requires_grad)
            setattr(module, name, spread[weight])


def take_parts(model: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Take the rows that this rank has read out of a model; weights without memory remain.

    Returns the (module, name, rows) of each place of a weight; those of tied ones share the rows.
    """
    taken: list[tuple[nn.Module, str, torch.Tensor]] = []
    empty: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, DTensor):
                if weight not in empty:
                    nothing = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
                    empty[weight] = nn.Parameter(nothing, requires_grad=weight.requires_grad)
                setattr(module, name, empty[weight])
                taken.append((module, name, weight.to_local().detach()))
    return taken


def put_parts(parts: list[tuple[nn.Module, str, torch.Tensor]], device: torch.device) -> None:
    """Put the rows into a model that fully_shard has sharded in the same way, in place. Empties `parts`."""
    put: dict[nn.Parameter, nn.Parameter] = {}
    while parts:
        module, name, rows = parts.pop()
        weight = getattr(module, name)
        if weight not in put:
            spread = DTensor.from_local(
                rows.to(device),
                weight.device_mesh,
                weight.placements,
                run_check=False,
                shape=weight.shape,
                stride=weight.stride(),
            )
            put[weight] = nn.Parameter(spread, requires_grad=weight.requires_grad)
        setattr(module, name, put[weight])


def whole_shapes(
    model: Any, infos: Sequence[dict[str, Any]], mine: dict[str, Any]
) -> list[tuple[str, list[int], list[int]]]:
    """Return the name of each weight of another shape, its shape in the files and in the model, sorted.

    infos  transformers' loading infos of all ranks, in which a weight that was read in parts has the shapes of these; to be
           called by all ranks
    mine   that of this rank
    """
    reported = {key: list(stored) for info in infos for key, stored, _ in info["mismatched_keys"]}
    own = {key: stored for key, stored, _ in mine["mismatched_keys"]}
    shapes = []
    for key, stored in sorted(reported.items()):
        weight = model.get_parameter_or_buffer(key)
        if isinstance(weight, DTensor):
            rows = int(own.get(key, weight.to_local().shape)[0])
            stored[0] = round(ranks.total(rows))
        shapes.append((key, stored, list(weight.shape)))
    return shapes
