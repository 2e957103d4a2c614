"""The gates f of the paper and their options.

A gate returns log f of the log ratio d = log ρ, so that nothing overflows: [B, T] -> [B, T]. Its signature declares its
options: `tau` becomes tau_neg and tau_pos and arrives as a [B, 1] tensor, picked by the sign of each advantage;
`positive` (Â > 0, [B, 1]) arrives unasked; every other parameter is an option of the same name. A new gate is one
function here and its name in SSPO_GATES; a new option is one entry in OPTIONS. The config, the keywords of
`build_objective` and the command line follow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sspo_cli.errors import UserError
from sspo_cli.objectives.aggregations import Aggregation, sequence

Gate = Callable[..., Tensor]


def clip(log_ratio: Tensor, positive: Tensor, eps_low: float, eps_high: float, clip_space: str = "ratio") -> Tensor:
    """Compute eq. (1): min(ρ, 1 + ε_high) where Â > 0, else max(ρ, 1 - ε_low).

    In clip_space "log" the bounds are ε away in log ρ instead, which is what the released code of GMPO does.
    """
    low, high = (-eps_low, eps_high) if clip_space == "log" else (math.log1p(-eps_low), math.log1p(eps_high))
    return torch.where(positive, log_ratio.clamp(max=high), log_ratio.clamp(min=low))


def sigmoid(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Compute eq. (9), the gate of SAPO: σ(τ(ρ - 1)) · 4/τ, and not 1 but 2/τ at ρ = 1."""
    return logsigmoid(tau * torch.expm1(log_ratio)) + torch.log(4 / tau)


def expsig(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Compute eq. (18): exp(4τ σ((ρ - 1)/τ) - 2τ)."""
    return 4 * tau * torch.sigmoid(torch.expm1(log_ratio) / tau) - 2 * tau


def expatan(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Compute eq. (19): exp(τ arctan((ρ - 1)/τ))."""
    return tau * torch.atan(torch.expm1(log_ratio) / tau)


def gumbel(log_ratio: Tensor) -> Tensor:
    """Compute eq. (20): exp(-exp(-(ρ - 1)) + 1)."""
    return 1 - torch.exp(-torch.expm1(log_ratio))


def atanlog(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Compute eqs. (15), (21), the paper's choice: exp(τ arctan(log ρ / τ))."""
    return tau * torch.atan(log_ratio / tau)


def siglog(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Compute eq. (22): exp(4τ σ(log ρ / τ) - 2τ)."""
    return 4 * tau * torch.sigmoid(log_ratio / tau) - 2 * tau


def cispo(log_ratio: Tensor, eps_high: float) -> Tensor:
    """Compute the gate of CISPO (arXiv 2506.13585, eq. 4), whose gradient is sg(min(ρ, 1 + ε_high)) ∇log π for both signs of Â.

    f is ρ up to 1 + ε_high and continues with the slope that it has there in log ρ. CISPO gives the gradient alone, so its
    loss cannot be compared with that of other gates. It breaks condition (iii): ρ f' does not fall on either side of 1.
    """
    cap = math.log1p(eps_high)
    return log_ratio.clamp(max=cap) + torch.log1p((log_ratio - cap).clamp(min=0))


def pspo(log_ratio: Tensor, alpha: float) -> Tensor:
    """Compute the smoothed ratio of PSPO (arXiv 2509.21282): (1 - α)ρ + α.

    It breaks conditions (ii), f'(1) being 1 - α, and (iii).
    """
    return torch.logaddexp(log_ratio + math.log1p(-alpha), torch.full_like(log_ratio, math.log(alpha)))


def cegppo(
    log_ratio: Tensor, positive: Tensor, eps_low: float, eps_high: float, beta_low: float, beta_high: float
) -> Tensor:
    """Compute the gate of CE-GPPO (arXiv 2509.20712): a clip that keeps a gradient outside its range.

    Where eq. (1) clips, value and ρ f' are β_high (1 + ε_high) for Â > 0 and β_low (1 - ε_low) otherwise, whatever ρ. It
    breaks condition (i): the value jumps unless β = 1, and it is not the integral of the gradient.
    """
    clipped = clip(log_ratio, positive, eps_low, eps_high)
    bound = clipped.detach()
    scaled = torch.where(positive, bound + math.log(beta_high), bound + math.log(beta_low))
    return torch.where(clipped == log_ratio, log_ratio, scaled + log_ratio - log_ratio.detach())


SSPO_GATES: dict[str, Gate] = {gate.__name__: gate for gate in (expsig, expatan, gumbel, atanlog, siglog)}
GATES: dict[str, Gate] = {
    "clip": clip,
    "sigmoid": sigmoid,
    **SSPO_GATES,
    "cispo": cispo,
    "pspo": pspo,
    "cegppo": cegppo,
}


Default = Callable[[Aggregation, str | Gate, Mapping[str, Any]], Any]
"""(aggregation, gate, the options that are given) -> value; a free cell starts where the method of the same cell does."""


@dataclass(frozen=True)
class Option:
    """An option of gates: a positive number, or one of `choices`.

    description  what the config says of it
    default      its value if none is given
    choices      the words that it can be; it is a number if there are none
    absent_from  methods that do not have it although their gate does
    """

    description: str
    default: Default
    choices: tuple[str, ...] = ()
    absent_from: tuple[str, ...] = ()


def _tau_default(of_sigmoid: float, of_others: float) -> Default:
    """Take the first pairs of the grids in appendix A, as printed."""
    return lambda aggregation, gate, given: of_sigmoid if gate == "sigmoid" else of_others


def _eps_default(of_sequence: float, of_cispo: float) -> Default:
    def default(aggregation: Aggregation, gate: str | Gate, given: Mapping[str, Any]) -> float:
        if gate == "cispo":
            return of_cispo
        if aggregation is sequence:
            return of_sequence  # of GSPO's authors
        if given.get("clip_space") == "log":
            return 0.4  # of GMPO's released code
        return 0.2  # the middle of the grid in appendix A

    return default


OPTIONS: dict[str, Option] = {
    "tau_neg": Option("temperature where the advantage is not positive", _tau_default(of_sigmoid=1.0, of_others=0.3)),
    "tau_pos": Option("temperature where the advantage is positive", _tau_default(of_sigmoid=1.05, of_others=0.2)),
    "eps_low": Option(
        "clip, cegppo: the ratio stays above 1 - eps_low where Â <= 0", _eps_default(of_sequence=3e-4, of_cispo=0.2)
    ),
    "eps_high": Option(
        "clip, cegppo: the ratio stays below 1 + eps_high where Â > 0; cispo: its weight does, whatever Â",
        _eps_default(
            of_sequence=4e-4, of_cispo=4.0
        ),  # ρ <= 5 is ScaleRL's cap (arXiv 2510.13786); CISPO's authors give none
    ),
    "clip_space": Option(
        "gmpo: clip the ratio (eq. 7) or its logarithm",
        lambda aggregation, gate, given: "ratio",
        choices=("ratio", "log"),
        absent_from=("grpo", "gspo", "luspo"),  # they clip the ratio; only of GMPO there are two readings
    ),
    "alpha": Option("pspo: weight of the old policy in the smoothed one", lambda aggregation, gate, given: 0.1),
    # Defaults of the released code of CE-GPPO.
    "beta_low": Option("cegppo: scale of the gradient below the clip range", lambda aggregation, gate, given: 0.75),
    "beta_high": Option("cegppo: scale of the gradient above the clip range", lambda aggregation, gate, given: 1.0),
}
BY_SIGN = {"tau": ("tau_neg", "tau_pos")}
"""Parameters of gates whose value depends on the sign of the advantage: (Â <= 0, Â > 0)."""


LARGEST = 10**9
"""Of a temperature or a clip range: at far less, a gate is the identity in float32."""


def check_values(resolved: Mapping[str, Any]) -> None:
    """Check the range of every option; a number of a wrong type is left to the caller. Raises UserError."""
    numbers = {name: _as_float(value) for name, value in resolved.items() if _is_number(value)}
    for name, value in numbers.items():
        if not 0 < value <= LARGEST:
            raise UserError(f"{name} = {value} must be a positive number of at most {LARGEST:,}")
    for name, value in resolved.items():
        if (choices := OPTIONS[name].choices) and value not in choices:
            raise UserError(f"{name} = {value!r} must be {' or '.join(choices)}")
    if numbers.get("alpha", 0) >= 1:
        raise UserError(f"alpha = {numbers['alpha']} leaves nothing of the current policy; choose a number below 1")
    if resolved.get("clip_space", "ratio") == "ratio" and numbers.get("eps_low", 0) >= 1:
        instead = ", or clip_space log" if "clip_space" in resolved else ""
        raise UserError(
            f"eps_low = {numbers['eps_low']} leaves no lower bound 1 - eps_low > 0; choose one below 1{instead}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf
