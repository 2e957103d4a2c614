"""Other kernels for the layers of a model, with the same results to rounding."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sspo_cli.errors import UserError, first_line

# Not its losses: the projection and what follows it are our own. Not its rotary embeddings: they are compiled for each number
# of rows, and in a sampler rows keep leaving.
LIGER = {"rope": False, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
# Graphs of a layer: with and without gradient, each anew for one prompt, one completion, one token; torch's limit is 8, beyond
# which it silently compiles no more.
GRAPHS = 64


def use_liger(model: Any, device: torch.device) -> None:
    """Replace norms and gated units by liger-kernel's fused ones, in place.

    Models of the same kind that this process loads later have them too. Raises UserError if it is not installed, if it has
    none for the model, and without a GPU.
    """
    if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):  # which the tests use
        raise UserError(f"model.kernels = liger needs a CUDA GPU, not device = {device.type}; use model.kernels=torch")
    from transformers.integrations.liger import apply_liger_kernel  # brings transformers' trainer along

    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError:
        raise UserError(
            "model.kernels = liger needs liger-kernel; install it with `pip install liger-kernel`"
        ) from None
    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"liger-kernel has nothing for {model.config.model_type} models; use model.kernels=torch")
    apply_liger_kernel(model, LIGER)


def compile_layers(model: Any) -> None:
    """Compile each decoder layer when it is first called; all of them share what is compiled.

    Layers are compiled, not the model: they are alike, so that the wait is for a single layer. Raises UserError if the model
    has none that transformers knows as such.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no layers to compile one by one; use model.kernels=torch")
    torch._dynamo.config.recompile_limit = GRAPHS
    for layer in layers:
        layer.compile(dynamic=True)


def checkpoint_layers(model: Any, compiled: bool) -> None:
    """Keep no activations within a layer: its forward pass is computed again in the backward pass.

    transformers does so only for layers in training mode, where models draw at random (dropout, the jitter of routers). So
    the layer's own flag alone says training, and not while it is computed, except in compiled layers, whose flag is part
    of what is compiled. Raises UserError for a model that cannot do it.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers or not model.supports_gradient_checkpointing:
        raise UserError(
            f"{type(model).__name__} has no layers that can be computed again; set model.gradient_checkpointing=false"
        )
    if hasattr(model, "activation_checkpointing_enable"):  # its name since transformers 5.20
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
        if not compiled:
            layer._gradient_checkpointing_func = partial(_checkpoint, layer, layer._gradient_checkpointing_func)


def _checkpoint(layer: nn.Module, checkpoint: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    """Compute a layer in evaluation mode by the `checkpoint` function, now and in the backward pass."""

    def evaluate(*args: Any) -> Any:
        layer.training = False
        try:
            return forward(*args)
        finally:
            layer.training = True

    return checkpoint(evaluate, *args)


@contextmanager
def explained_compiler_errors() -> Iterator[None]:
    """Raise UserError if torch.compile fails, such as without a C++ compiler, or Triton on a GPU."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
            raise
        raise UserError(
            f"torch.compile does not work here: {first_line(error)}; use model.kernels=torch, and "
            "optimizer.eight_bit=false, which compiles its step on a GPU"
        ) from None
