"""Sizes of a model that determine its memory. They are read from its config without downloading or allocating weights."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.experts import expert_layers
from sspo_cli.policy.packing import can_share_prompts
from sspo_cli.policy.pretrained import choose_attention, load_config, model_class
from sspo_cli.policy.tiny import tiny_config, tiny_tokenizer


class NotEstimated(Exception):
    """Raised if the memory of a model cannot be estimated. The message is the reason."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model.

    parameters    number of parameters without adapters; tied parameters are counted once
    trained       number of trained parameters: all parameters, or the parameters of the adapters
    norms         number of trained parameters in vectors, such as norms and biases
    cast          number of trained parameters of linear layers and experts, which autocast copies to bfloat16 if they are float32
    head          number of parameters of the vocabulary projection
    by_rows       number of parameters by the size of their first dimension, which ranks divide among themselves
    outside       number of parameters outside of the decoder layers: embedding, projection and last norm
    vocabulary    number of tokens in the vocabulary
    hidden        width of the hidden states
    layers        number of layers
    queries       total width of the query heads of a layer
    keys          total width of the key heads of a layer; the value heads have the same total width
    has_norms     True if queries and keys are normalized
    intermediate  feed-forward width per token: width of the layer, or total width of the experts that a token uses
    linear        (input width, output width) of each linear layer except the vocabulary projection, by name
    experts       number of experts that a token uses; 0 if the model is not a mixture of experts
    adapted       total input width of the adapters of a layer; 0 if there are no adapters
    shares        True if each prompt is computed once for all completions of its group
    """

    parameters: int
    trained: int
    norms: int
    cast: int
    head: int
    by_rows: dict[int, int]
    outside: int
    vocabulary: int
    hidden: int
    layers: int
    queries: int
    keys: int
    has_norms: bool
    intermediate: int
    experts: int
    adapted: int
    shares: bool
    linear: dict[str, tuple[int, int]]

    def largest_share(self, ranks: int) -> float:
        """Return the share of the parameters of the rank that has the most; 1 / ranks if all first dimensions are divisible."""
        of_rank = sum(count * math.ceil(rows / ranks) / rows for rows, count in self.by_rows.items())
        return of_rank / self.parameters

    def with_adapters(self, lora: LoraOptions) -> Self:
        """Return the sizes of the model with LoRA adapters on the linear layers that `lora.targets` selects."""
        chosen = [
            sizes
            for name, sizes in self.linear.items()
            if lora.targets == "all-linear" or any(name == t or name.endswith(f".{t}") for t in lora.targets)
        ]
        trained = sum(lora.rank * (inputs + outputs) for inputs, outputs in chosen)
        adapted = sum(inputs for inputs, _ in chosen) // self.layers
        return replace(self, trained=trained, norms=0, cast=0, adapted=adapted)


def read_shape(options: ModelOptions, folder: Path | None = None) -> ModelShape:
    """Read the sizes of a model from its config.

    folder  checkpoint with the config; None, or a checkpoint of adapters, for the config of the original model

    Raises NotEstimated if the config cannot be read, if the weights are quantized, or if the config's sizes have unknown names.
    """
    source = str(folder) if folder and not (folder / "adapter_config.json").is_file() else options.name
    try:
        model = _without_weights(options, source)
    except UserError as error:
        raise NotEstimated(str(error)) from None
    except Exception as error:  # the model's own code may raise any exception
        raise NotEstimated(f"the code of {source} fails with {type(error).__name__}") from None
    try:
        return _shape(model, options)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise NotEstimated(f"the config of {source} does not have the usual names of sizes ({error})") from None


def _without_weights(options: ModelOptions, source: str | None) -> Any:
    """Build the model on torch's meta device, where tensors have shapes but need no memory."""
    with torch.device("meta"):
        if source is None:
            tokenizer = tiny_tokenizer()
            from transformers import Qwen2ForCausalLM

            return Qwen2ForCausalLM(tiny_config(options.tiny, tokenizer))
        config = load_config(source, options.revision if source == options.name else None)
        if getattr(config, "quantization_config", None):
            raise NotEstimated("the weights are quantized")
        kind = model_class(source, config)
        attention, _ = choose_attention(kind, "sdpa" if options.attention == "flash_attention_2" else options.attention)
        return kind._from_config(config, attn_implementation=attention)


def _shape(model: Any, options: ModelOptions) -> ModelShape:
    config, head = model.config.get_text_config(decoder=True), model.get_output_embeddings()
    own = list(model.parameters())
    heads, hidden, layers = config.num_attention_heads, config.hidden_size, config.num_hidden_layers
    width = getattr(config, "head_dim", None) or hidden // heads
    experts = getattr(config, "num_experts_per_tok", None) or 0
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    if experts:
        intermediate = experts * (getattr(config, "moe_intermediate_size", None) or intermediate)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    linear = {
        name: module.weight.T if isinstance(module, Conv1D) else module.weight  # [outputs, inputs]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    parameters = sum(parameter.numel() for parameter in own)
    by_rows = Counter[int]()
    for parameter in own:
        by_rows[parameter.shape[0] if parameter.ndim else 1] += parameter.numel()
    in_layers = {
        weight: weight.numel()
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for weight in layer.parameters()
    }
    experts_of_all = sum(parameter.numel() for layer in expert_layers(model) for parameter in layer.parameters())
    shape = ModelShape(
        parameters=parameters,
        trained=parameters,
        norms=sum(parameter.numel() for parameter in own if parameter.ndim < 2),
        cast=sum(weight.numel() for weight in linear.values()) + experts_of_all,
        linear={name: (weight.shape[1], weight.shape[0]) for name, weight in linear.items()},
        head=head.weight.numel(),
        by_rows=dict(by_rows),
        outside=parameters - sum(in_layers.values()),
        vocabulary=head.weight.shape[0],
        hidden=hidden,
        layers=layers,
        queries=heads * width,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * width,
        has_norms=bool(names & {"q_norm", "q_layernorm", "query_norm"}),
        intermediate=intermediate,
        experts=experts,
        adapted=0,
        shares=options.attention == "sdpa" and can_share_prompts(model),
    )
    return shape.with_adapters(options.lora) if options.lora else shape
