"""AdamW, its learning-rate schedule, and a step that is skipped if the loss or the gradient is not finite."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sspo_cli import ranks
from sspo_cli.config import ColdStartOptions, ModelOptions, OptimizerOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.sharding import local


def adamw(
    parameters: Iterable[nn.Parameter], betas: tuple[float, float], weight_decay: float, eight_bit: bool
) -> torch.optim.Optimizer:
    """Make an AdamW that applies weight decay to matrices only, not to norms and biases.

    `guarded_step` sets the learning rate. With `eight_bit`, the optimizer state has 8 bits, except for tensors with fewer than
    4096 elements or a number of elements that is not a multiple of 256, whose state has the weights' dtype. Updated
    bfloat16 weights are then rounded stochastically, because rounding to the nearest would lose updates of less than 1/256
    of the weight. Raises UserError if `eight_bit` is set and torchao is not installed.
    """
    parameters = list(parameters)
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not eight_bit:
        # Fused: the other implementations hold temporary copies as large as the weights.
        return torch.optim.AdamW(groups, betas=betas, fused=True)
    optimizer = adamw_8bit()(groups, betas=betas, bf16_stochastic_round=True)
    if parameters[0].device.type == "cpu":  # the machine may lack the compiler that torchao's compiled step needs
        optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)
    return optimizer


def adamw_8bit() -> Any:
    """Import torchao's optimizer, which torch.load needs to read its state. Raises UserError if torchao is not installed."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise UserError("optimizer.eight_bit needs torchao; install it with `pip install torchao`") from None
    return AdamW8bit


def check_weights(model: ModelOptions, size: int) -> None:
    """Raise UserError if bfloat16 weights are to be trained on `size` > 1 ranks, where torchao's optimizer cannot update them."""
    if model.weights == "bfloat16" and size > 1:
        raise UserError(
            "model.weights = bfloat16 needs a single process, because torchao's optimizer cannot update such weights if they "
            f"are sharded over {size} ranks; use model.weights=float32"
        )


def scheduled_rate(options: OptimizerOptions | ColdStartOptions, step: int, steps: int) -> float:
    """Return the learning rate of step `step` (from 0) of `steps`: linear warm-up, then `options.schedule`."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    match options.schedule:
        case "constant":
            return options.learning_rate
        case "linear":
            return options.learning_rate * (1 - progress)
        case "cosine":
            return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def describe_new_end(options: OptimizerOptions, step: int, before: int, after: int) -> str | None:
    """Describe how learning rates change from `step` on if the schedule ends at step `after` instead of `before`.

    Returns None if they do not change.
    """
    if before == after or options.schedule == "constant":
        return None
    sentence = f"optimizer.schedule = {options.schedule} now ends at step {after} instead of {before}"
    for index in range(step, min(before + 1, after)):  # skip equal rates, such as those of the warm-up
        old, new = (f"{scheduled_rate(options, index, steps):.3g}" for steps in (before, after))
        if old != new:
            return f"{sentence}: the learning rate of step {index + 1} is {new} instead of {old}"
    return sentence


def guarded_step(
    optimizer: torch.optim.Optimizer, loss: float, learning_rate: float, max_grad_norm: float, seed: int
) -> tuple[float, bool]:
    """Clip the gradients, take an optimizer step, and clear the gradients.

    seed  seed of the stochastic rounding

    Returns the gradient norm before clipping, and whether the step was taken. If the loss or the norm is not finite, no step
    is taken: weights and optimizer state do not change.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # Of each rank's parts, because an operation on a sharded tensor takes longer than on a plain one. In float32, even if the
    # gradients are bfloat16.
    parts = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]
    norm = math.sqrt(ranks.total(torch.linalg.vector_norm(torch.stack(norms)).item() ** 2))
    nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, torch.tensor(norm))
    taken = math.isfinite(norm) and math.isfinite(loss)
    if taken:
        for group in optimizer.param_groups:  # torchao stores the rate in a tensor
            group["lr"] = torch.tensor(learning_rate) if isinstance(group["lr"], Tensor) else learning_rate
        torch.manual_seed(seed)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, taken
