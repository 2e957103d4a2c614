"""Alternative kernels for the layers of a model, with equal results up to rounding."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, first_line

# Liger's losses are off because the projection and the loss are implemented here; its rotary embeddings are off because they
# are compiled for each number of rows, which changes while sampling.
LIGER = {"rope": False, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
# Graphs of a layer: with and without gradient, each also for a single prompt, completion or token. Beyond torch's limit of 8 it
# silently stops compiling.
GRAPHS = 64


def check_kernels(options: ModelOptions, ranks: int) -> None:
    """Raise UserError if the options select compiled layers and there are several ranks."""
    if options.kernels == "compiled" and ranks > 1:
        raise UserError("model.kernels = compiled does not support several ranks; use model.kernels=torch")


def use_liger(model: Any, device: torch.device) -> None:
    """Replace norms and gated units by liger-kernel's fused ones, in place.

    Raises UserError if liger-kernel is not installed or has no kernels for the model, and without a GPU.
    """
    if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):  # set by the tests
        raise UserError(f"model.kernels = liger needs a CUDA GPU, not device = {device.type}; use model.kernels=torch")
    from transformers.integrations.liger import apply_liger_kernel  # here, because it imports transformers' trainer

    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        raise UserError(
            "model.kernels = liger needs liger-kernel; install it with `pip install liger-kernel`"
        ) from None
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"liger-kernel has no kernels for {model.config.model_type} models; use model.kernels=torch")
    classes = vars(sys.modules[type(model).__module__])
    own = dict(classes)
    apply_liger_kernel(model, LIGER)
    # liger-kernel also replaces the classes of the model's module. They are restored, because a model of the same type that is
    # loaded later may be on the CPU, where the kernels cannot run.
    classes.update(own)


def compile_layers(model: Any) -> None:
    """Compile the decoder layers at their first call; equal layers share their compiled code.

    Layers are compiled instead of the model, so that compilation takes as long as for one layer. Raises UserError if
    transformers does not know the model's layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no layers to compile one by one; use model.kernels=torch")
    torch._dynamo.config.recompile_limit = GRAPHS
    for layer in layers:
        layer.compile(dynamic=True)


def checkpoint_layers(model: Any, compiled: bool) -> None:
    """Recompute the forward pass of each layer in the backward pass instead of storing its activations.

    transformers does so only for layers in training mode, in which models draw random numbers (dropout, router jitter).
    Therefore only the layer's own flag is set to training, and it is cleared while the layer is computed. In compiled layers
    it stays set, because the flag is part of the compiled code. Raises UserError for a model without this feature.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise UserError(
            f"{type(model).__name__} has no layers that support gradient checkpointing; set model.gradient_checkpointing=false"
        )
    if hasattr(model, "activation_checkpointing_enable"):  # since transformers 5.20
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
        if not compiled:
            layer._gradient_checkpointing_func = partial(_checkpoint, layer, layer._gradient_checkpointing_func)


def _checkpoint(layer: nn.Module, checkpoint: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    """Compute a layer in evaluation mode with the `checkpoint` function, now and in the backward pass."""

    def evaluate(*args: Any) -> Any:
        layer.training = False
        try:
            return forward(*args)
        finally:
            layer.training = True

    return checkpoint(evaluate, *args)


@contextmanager
def explained_compiler_errors() -> Iterator[None]:
    """Raise UserError if torch.compile fails, for example without a C++ compiler, or without Triton on a GPU."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        raise UserError(
            f"torch.compile does not work here: {first_line(error)}; use model.kernels=torch, and "
            "optimizer.eight_bit=false, which compiles its step on a GPU"
        ) from None
