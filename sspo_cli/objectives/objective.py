"""The objective of a method, tensors in and tensors out, and the stable way to one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sspo_cli.errors import UserError
from sspo_cli.objectives.aggregations import Aggregation, arithmetic
from sspo_cli.objectives.conditions import check_conditions, check_usable
from sspo_cli.objectives.gates import BY_SIGN, GATES, OPTIONS, Gate
from sspo_cli.objectives.methods import METHODS
from sspo_cli.objectives.normalizers import NORMALIZERS, Normalizer
from sspo_cli.objectives.options import gate_name, gate_parameters, load_gate, resolve_options, takes_options
from sspo_cli.objectives.ratios import clean_log_ratio


@dataclass(frozen=True)
class Objective:
    """Computes the weight S_i and the factor c_i of every completion; the loss of a minibatch is -Σ_i c_i · S_i · Â_i.

    options      what the gate's parameters are filled from: some of those in OPTIONS
    token_limit  the most tokens that a completion can have; only the normalizer `constant` needs it
    """

    method: str
    aggregation: Aggregation
    gate: Gate
    normalizer: Normalizer
    options: Mapping[str, Any]
    token_limit: int = 1

    def factors(self, lengths: Tensor) -> Tensor:
        """Compute c_i from the numbers of own tokens of all completions of the minibatch: [N] -> [N]."""
        return self.normalizer(lengths, self.token_limit)

    def weights(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Compute S_i of eqs. (2), (5), (7), (8), (11), in float32 or wider, differentiable in the log ratio.

        log_ratio [B, T]; advantages [B]; mask [B, T], nonzero on tokens that the policy wrote  ->  [B]

        What stands at masked positions, NaN included, has no influence on the value or the gradient.
        """
        log_ratio, mask = clean_log_ratio(log_ratio, mask), mask.bool()
        return self.aggregation(self.gate_for(advantages, log_ratio.dtype), log_ratio, mask)

    def token_weights(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Compute the paper's w of every token, detached: ρ f'(ρ) in eq. (12), ρ f'/f in eqs. (14), (16); 1 where ρ = 1.

        Shapes as in `weights`  ->  [B, T], 0 at masked positions. It is |y_i| times the derivative in d_it of S_i for
        the arithmetic mean, of log S_i for the others.
        """
        with torch.enable_grad():
            dtype = torch.promote_types(log_ratio.dtype, torch.float32)
            log_ratio = log_ratio.detach().to(dtype).requires_grad_()
            weights = self.weights(log_ratio, advantages, mask)
            (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
        scale = mask.bool().sum(-1) / (1 if self.aggregation is arithmetic else weights.detach())
        return gradient * scale[:, None]

    def gate_for(self, advantages: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Bind the gate to eq. (10)'s τ(Â) and the options, so that it is a function of the log ratio alone."""
        positive = (advantages > 0)[:, None]
        arguments: dict[str, Any] = {"positive": positive, **self.options}
        for parameter, (negative_option, positive_option) in BY_SIGN.items():
            if negative_option in self.options:
                values = torch.full_like(positive, self.options[negative_option], dtype=dtype)
                arguments[parameter] = values.masked_fill(positive, self.options[positive_option])
        return partial(self.gate, **{name: arguments[name] for name in gate_parameters(self.gate) if name in arguments})


@takes_options
def build_objective(
    *,
    method: str,
    gate: str | Gate | None = None,
    normalizer: str | None = None,
    token_limit: int | None = None,
    allow_any_gate: bool = False,
    **options: float | str | None,
) -> Objective:
    """Build the objective of a method: `build_objective(method="sspo", gate="atanlog", tau_neg=0.3, tau_pos=0.2)`.

    method          a name in METHODS: a published method, or arithmetic, geometric, sequence with any gate
    gate            a name in GATES, "module:function", or a callable (log_ratio) or (log_ratio, tau) -> log f
    normalizer      a name in NORMALIZERS
    token_limit     the most tokens that a completion can have, for the normalizer `constant`
    allow_any_gate  take a gate of your own although it breaks the paper's conditions (i)-(iv)
    OPTIONS

    Options that are None get the method's defaults. Raises UserError for all that `resolve_options` refuses, for a
    value that is not a number, and for a gate that fails, gives other shapes, is not finite or breaks a condition.
    """
    resolved = resolve_options(method=method, gate=gate, normalizer=normalizer, **options)
    method, gate, normalizer = (resolved.pop(name) for name in ("method", "gate", "normalizer"))
    for name, value in resolved.items():
        if not OPTIONS[name].choices and not isinstance(value, Real):
            raise UserError(f"{name} = {value!r} must be a positive number")
    if normalizer == "constant" and token_limit is None:
        raise UserError("normalizer constant divides by the token limit of a completion; give token_limit")
    aggregation, divide = METHODS[method].aggregation, NORMALIZERS[normalizer]
    objective = Objective(method, aggregation, load_gate(gate), divide, resolved, token_limit or 1)
    if gate not in GATES:
        check_usable(objective.gate_for, gate_name(gate))
        if not allow_any_gate:
            check_conditions(objective.gate_for, gate_name(gate))
    return objective
