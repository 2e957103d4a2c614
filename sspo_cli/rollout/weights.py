"""The policy's weights in the checkpoint format of its model, which other engines can load."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from sspo_cli import ranks
from sspo_cli.errors import border
from sspo_cli.policy.checkpoint import follow_umask
from sspo_cli.policy.model import Policy
from sspo_cli.policy.sharded_files import SafetensorsWriter, write_by_first
from sspo_cli.policy.sharding import whole


@torch.no_grad()  # in a decorated generator, no_grad ends at each yield, so that the caller keeps its grad mode
def checkpoint_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight) pairs, one at a time, so that a complete second copy of the model is never held.

    LoRA adapters are merged into the yielded copies; the policy's own weights do not change. Names and shapes are those of
    the published checkpoint. The model in memory can have other names and shapes, for example if it fuses experts. All ranks
    yield the same pairs and must consume all of them, because each weight is gathered from all ranks when it is yielded.
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
                deltas = [whole(layer.get_delta_weight(adapter)).float() for adapter in layer.active_adapters]
                weight = whole(weight.float()) + sum(deltas)
        yield from revert_weight_conversion(model, {name: whole(weight.detach().to(dtype))}).items()


def write_weights(policy: Policy, folder: Path) -> None:
    """Replace the content of `folder` with the policy's weights as safetensors files, which the first rank writes.

    Raises UserError if the files cannot be written.
    """
    failure = f"the weights for the vLLM server cannot be written to {folder}"

    def empty() -> None:
        with border(failure):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    ranks.on_first(empty)
    writer = SafetensorsWriter(folder)
    write_by_first(writer, checkpoint_weights(policy, policy.dtype), failure, lambda: follow_umask(folder))
