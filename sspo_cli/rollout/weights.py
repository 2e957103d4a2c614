"""The policy's weights as a checkpoint of its model would hold them: what another engine can load."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from sspo_cli.errors import UserError
from sspo_cli.policy.checkpoint import follow_umask
from sspo_cli.policy.model import Policy

SHARD_BYTES = 4 << 30


@torch.no_grad()  # as a decorator it ends at each yield: the reader keeps its own grad mode
def checkpoint_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight) pairs, one at a time, so that no second copy of the model is ever held whole.

    LoRA's adapters are merged on the way, the policy's own weights stay as they are. The names and shapes are those of
    the published checkpoint, where the model in memory has others (experts are fused there).
    """
    lora = hasattr(policy.model, "peft_config")
    model = policy.model.get_base_model() if lora else policy.model
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        if ".base_layer." in name:
            layer_name, _, kind = name.rpartition(".base_layer.")
            name = f"{layer_name}.{kind}"
            if kind == "weight":
                layer = model.get_submodule(layer_name)
                weight = weight.float() + sum(layer.get_delta_weight(a).float() for a in layer.active_adapters)
        yield from revert_weight_conversion(model, {name: weight.detach().to(dtype)}).items()


def write_weights(policy: Policy, folder: Path) -> None:
    """Write them as safetensors files to `folder`, which holds nothing else afterwards. Raises UserError if it cannot."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shard: dict[str, Tensor] = {}
        written = size = 0
        for name, weight in checkpoint_weights(policy, policy.dtype):
            shard[name] = weight.contiguous()
            size += weight.nbytes
            if size >= SHARD_BYTES:
                save_file(shard, folder / f"model-{written}.safetensors")
                shard, written, size = {}, written + 1, 0
        save_file(shard, folder / f"model-{written}.safetensors")
        follow_umask(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights for the vLLM server cannot be written to {folder}: {error}") from None
