"""The objective of a method, and `build_objective`, the stable interface for other programs."""

from abc import ABC, abstractmethod
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
from sspo_cli.objectives.options import (
    function_name,
    gate_parameters,
    load_gate,
    load_method,
    resolve_options,
    takes_options,
)
from sspo_cli.objectives.own_method import OwnMethod, along_equal_ratios, check_rows
from sspo_cli.objectives.ratios import clean_log_ratio


@dataclass(frozen=True)
class Objective(ABC):
    """Computes the weight S_i and the factor c_i of every completion; the loss of a minibatch is -Σ_i c_i · S_i · Â_i.

    token_limit  maximum length of a completion; only the normalizer `constant` uses it
    """

    method: str
    normalizer: Normalizer
    token_limit: int

    def factors(self, lengths: Tensor) -> Tensor:
        """Compute c_i from the lengths, in own tokens, of all completions of the minibatch: [N] -> [N]."""
        return self.normalizer(lengths, self.token_limit)

    def weights(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Compute S_i of eqs. (2), (5), (7), (8), (11), in float32 or wider, differentiable in the log ratio.

        log_ratio [B, T]; advantages [B]; mask [B, T], nonzero on tokens that the policy wrote  ->  [B]

        Values at masked positions, even NaN, do not affect the result or its gradient.
        """
        return self.weights_of_clean(clean_log_ratio(log_ratio, mask), advantages, mask.bool())

    def token_weights(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Compute the paper's w of every token, detached: ρ f'(ρ) in eq. (12), ρ f'/f in eqs. (14), (16); 1 if ρ = 1.

        Shapes as in `weights`  ->  [B, T], 0 at masked positions. The weight is |y_i| times the derivative with respect to
        d_it: the derivative of S_i for the arithmetic mean, and of log S_i for the other aggregations.
        """
        with torch.enable_grad():
            dtype = torch.promote_types(log_ratio.dtype, torch.float32)
            log_ratio = log_ratio.detach().to(dtype).requires_grad_()
            weights = self.weights(log_ratio, advantages, mask)
            (gradient,) = torch.autograd.grad(weights.sum(), log_ratio)
        scale = mask.bool().sum(-1) / (1 if self.is_arithmetic else weights.detach())
        return gradient * scale[:, None]

    @property
    @abstractmethod
    def is_arithmetic(self) -> bool:
        """True if S is a mean of gated ratios, so that token weights are derivatives of S and not of log S."""

    @abstractmethod
    def weights_of_clean(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Compute S from finite log ratios, 0 at masked positions, and a boolean mask."""


@dataclass(frozen=True)
class GatedObjective(Objective):
    """An aggregation of a gate.

    options  values for the gate's parameters, by their names in OPTIONS
    """

    aggregation: Aggregation
    gate: Gate
    options: Mapping[str, Any]

    @property
    def is_arithmetic(self) -> bool:
        """True if the aggregation is the arithmetic mean."""
        return self.aggregation is arithmetic

    def weights_of_clean(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Aggregate the gated log ratios."""
        return self.aggregation(self.gate_for(advantages, log_ratio.dtype), log_ratio, mask)

    def gate_for(self, advantages: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Bind the gate to τ(Â) of eq. (10) and the other options; the result is a function of the log ratio alone."""
        positive = (advantages > 0)[:, None]
        arguments: dict[str, Any] = {"positive": positive, **self.options}
        for parameter, (negative_option, positive_option) in BY_SIGN.items():
            if negative_option in self.options:
                values = torch.full_like(positive, self.options[negative_option], dtype=dtype)
                arguments[parameter] = values.masked_fill(positive, self.options[positive_option])
        return partial(self.gate, **{name: arguments[name] for name in gate_parameters(self.gate) if name in arguments})


@dataclass(frozen=True)
class OwnObjective(Objective):
    """A user-defined method."""

    function: OwnMethod

    @property
    def is_arithmetic(self) -> bool:
        """False, because the derivative of log S cancels a factor that the function applies."""
        return False

    def weights_of_clean(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Call the function."""
        return self.function(log_ratio, advantages, mask)


@takes_options
def build_objective(
    *,
    method: str | OwnMethod,
    gate: str | Gate | None = None,
    normalizer: str | None = None,
    token_limit: int | None = None,
    allow_any_gate: bool = False,
    allow_any_method: bool = False,
    **options: float | str | None,
) -> Objective:
    """Build the objective of a method: `build_objective(method="sspo", gate="atanlog", tau_neg=0.3, tau_pos=0.2)`.

    method            a name in METHODS: a published method, or arithmetic, geometric or sequence with any gate; or your own
                      method as "module:function" or as a callable (log_ratio, advantages, mask) -> S
    gate              a name in GATES, "module:function", or a callable (log_ratio) or (log_ratio, tau) -> log f
    normalizer        a name in NORMALIZERS
    token_limit       maximum length of a completion in tokens, required by the normalizer `constant`
    allow_any_gate    accept your own gate even if it breaks the paper's conditions (i)-(iv)
    allow_any_method  accept your own method even if it breaks these conditions
    OPTIONS

    Options that are None get the method's defaults. Raises UserError in all cases of `resolve_options`, for a value that is
    not a number, and for a gate or a method that fails, returns a wrong shape or non-finite values, or breaks a condition.
    """
    resolved = resolve_options(method=method, gate=gate, normalizer=normalizer, **options)
    method, gate, normalizer = (resolved.pop(name) for name in ("method", "gate", "normalizer"))
    for name, value in resolved.items():
        if not OPTIONS[name].choices and not isinstance(value, Real):
            raise UserError(f"{name} = {value!r} must be a positive number")
    if normalizer == "constant" and token_limit is None:
        raise UserError("normalizer constant divides by the maximum length of a completion; pass token_limit")
    divide, limit = NORMALIZERS[normalizer], token_limit or 1
    if gate is None:
        return _own_objective(method, divide, limit, allow_any_method)
    assert isinstance(method, str)
    objective = GatedObjective(method, divide, limit, METHODS[method].aggregation, load_gate(gate), resolved)
    if gate not in GATES:
        name = f"gate {function_name(gate)}"
        check_usable(objective.gate_for, name)
        if not allow_any_gate:
            check_conditions(objective.gate_for, name, "--allow-any-gate")
    return objective


def _own_objective(method: str | OwnMethod, normalizer: Normalizer, limit: int, allow_any: bool) -> OwnObjective:
    function, name = load_method(method), f"method {function_name(method)}"
    check_rows(function, name, on_policy=not allow_any)
    gate_for = partial(along_equal_ratios, function)
    if not allow_any:
        check_usable(gate_for, name)
        check_conditions(gate_for, name, "--allow-any-method")
    return OwnObjective(function_name(method), normalizer, limit, function)
