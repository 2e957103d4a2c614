"""Options of the model: a named one or the embedded tiny one, its computation and its adapters."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sspo_cli.config.base import Options, PositiveFloat, TorchSeed


class TinyModelOptions(Options):
    """A Qwen2-shaped model with random weights and the embedded character tokenizer, used if `model.name` is null."""

    hidden_size: int = Field(64, gt=0, le=2**16, description="width of the residual stream")
    layers: int = Field(3, gt=0, le=1000, description="number of transformer layers")
    heads: int = Field(2, gt=0, le=2**12, description="number of attention heads per layer")
    intermediate_size: int = Field(192, gt=0, le=2**20, description="width of the feed-forward layers")
    seed: TorchSeed = Field(
        0,
        description="seed of the initial weights; independent of the run's seed, so that runs with different seeds "
        "share a cold start",
    )
    action_tags: bool = Field(
        False,
        description="encode `<execute>`, `<solution>` and their closing tags as single tokens, for multi-turn tasks",
    )
    context: int = Field(
        1024,
        gt=0,
        le=2**20,
        description="largest number of tokens of a prompt and its completion together; does not affect the weights",
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"model.tiny.hidden_size = {self.hidden_size} cannot be split into heads of even width by "
                f"model.tiny.heads = {self.heads}"
            )
        return self


class LoraOptions(Options):
    """Low-rank adapters (peft), which are trained instead of all weights."""

    rank: int = Field(16, gt=0, le=2**16, description="rank of the adapters")
    alpha: PositiveFloat = Field(32.0, description="scale: the update is multiplied by alpha / rank")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="names of the layers that get an adapter, or all linear layers"
    )
    seed: TorchSeed = Field(0, description="seed of the adapters' initial weights")


class ModelOptions(Options):
    """The model: a Hugging Face model (`name`), or a tiny model that is built from scratch."""

    name: str | None = Field(
        None, description="name or folder of a Hugging Face causal language model; null: the tiny model"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a model on the hub; null: its main branch")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="compute dtype; auto: bfloat16 if the GPU supports it, otherwise float32"
    )
    weights: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype of fully trained weights and their gradients; bfloat16 needs half the memory, and requires "
        "optimizer.eight_bit",
    )
    kernels: Literal["torch", "liger", "compiled"] = Field(
        "torch",
        description="kernels of the layers: torch, liger (fused kernels, on a GPU) or compiled (torch.compile, for "
        "learning); the results are equal up to rounding",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa",
        description="implementation of attention: sdpa (fused, part of torch), eager (plain) or flash_attention_2 (on "
        "a GPU)",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, which needs less memory and more time"
    )
    lora: LoraOptions | None = Field(None, description="options of low-rank adapters; null: train all weights")
    tiny: TinyModelOptions = Field(
        TinyModelOptions(), description="shape of the embedded model, which is used if name is null"
    )

    @model_validator(mode="after")
    def _weights_fit_the_computation(self) -> Self:
        if self.weights == "bfloat16" and self.dtype == "float32":
            raise ValueError(
                "model.weights = bfloat16 cannot be combined with model.dtype = float32; leave out model.dtype"
            )
        if self.weights == "bfloat16" and self.lora:
            raise ValueError(
                "model.weights does not apply with model.lora: the frozen weights have model.dtype, the adapters are float32"
            )
        return self
