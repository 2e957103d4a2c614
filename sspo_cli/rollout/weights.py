"""The policy's weights as a checkpoint of its model would hold them: what another engine can load."""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from sspo_cli.policy.model import Policy


def checkpoint_weights(policy: Policy, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) pairs, one at a time, so that no second copy of the model is ever held whole.

    LoRA's adapters are merged on the way, the policy's own weights stay as they are. The names and shapes are those of
    the published checkpoint, where the model in memory has others (experts are fused there).
    """
    lora = hasattr(policy.model, "peft_config")
    model = policy.model.get_base_model() if lora else policy.model
    with torch.no_grad():
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
