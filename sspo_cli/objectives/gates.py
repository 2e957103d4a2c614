"""The gates f of the paper and their options.

A gate maps the log ratio d = log ρ to log f, so that nothing overflows: [B, T] -> [B, T]. Its signature declares its options:

- A parameter `tau` declares the options tau_neg and tau_pos. The gate receives a [B, 1] tensor, which holds for each
  completion the value for the sign of its advantage.
- A parameter `positive` declares no option. The gate receives a boolean [B, 1] tensor, Â > 0.
- Any other parameter declares an option of the same name.

To add a gate, write one function here and add it to SSPO_GATES. To add an option, add one entry to OPTIONS. The config, the
keywords of `build_objective` and the command line are derived from these.
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
    """Compute eq. (1): min(ρ, 1 + ε_high) if Â > 0, otherwise max(ρ, 1 - ε_low).

    With clip_space "log" the bounds are ±ε in log ρ, as in the released code of GMPO.
    """
    low, high = (-eps_low, eps_high) if clip_space == "log" else (math.log1p(-eps_low), math.log1p(eps_high))
    return torch.where(positive, log_ratio.clamp(max=high), log_ratio.clamp(min=low))


def sigmoid(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Compute eq. (9), the gate of SAPO: σ(τ(ρ - 1)) · 4/τ. At ρ = 1 its value is 2/τ and its derivative 1."""
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

    f is ρ up to 1 + ε_high; above, f is linear in log ρ with the slope at that point. CISPO defines only the gradient, so
    its loss is not comparable with that of other gates. It breaks condition (iii): ρ f' does not fall on both sides of 1.
    """
    cap = math.log1p(eps_high)
    return log_ratio.clamp(max=cap) + torch.log1p((log_ratio - cap).clamp(min=0))


def pspo(log_ratio: Tensor, alpha: float) -> Tensor:
    """Compute the smoothed ratio of PSPO (arXiv 2509.21282): (1 - α)ρ + α.

    It breaks conditions (ii), since f'(1) = 1 - α, and (iii).
    """
    return torch.logaddexp(log_ratio + math.log1p(-alpha), torch.full_like(log_ratio, math.log(alpha)))


def cegppo(
    log_ratio: Tensor, positive: Tensor, eps_low: float, eps_high: float, beta_low: float, beta_high: float
) -> Tensor:
    """Compute the gate of CE-GPPO (arXiv 2509.20712): a clip that keeps a gradient outside its range.

    At ratios that eq. (1) clips, both f and ρ f' are β_high (1 + ε_high) for Â > 0 and β_low (1 - ε_low) otherwise. It
    breaks condition (i): f jumps unless β = 1, and the gradient is not the derivative of f.
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
"""(aggregation, gate, options that the user set) -> default.

A default does not depend on the method: `geometric` with the gate `clip` has the defaults of `gmpo`.
"""


@dataclass(frozen=True)
class Option:
    """An option of gates: a positive number, or one of `choices`.

    description  description in the config
    default      value if the user sets none
    choices      possible values, if the option is a word; empty for a number
    absent_from  methods that do not have the option although their gate has it
    """

    description: str
    default: Default
    choices: tuple[str, ...] = ()
    absent_from: tuple[str, ...] = ()


def _tau_default(of_sigmoid: float, of_others: float) -> Default:
    """Make the default of a temperature: `of_sigmoid` for the gate `sigmoid`, `of_others` for all other gates.

    The values are the first pairs of the grids in appendix A.
    """
    return lambda aggregation, gate, given: of_sigmoid if gate == "sigmoid" else of_others


def _eps_default(of_sequence: float, of_cispo: float) -> Default:
    def default(aggregation: Aggregation, gate: str | Gate, given: Mapping[str, Any]) -> float:
        if gate == "cispo":
            return of_cispo
        if aggregation is sequence:
            return of_sequence  # from GSPO's authors
        if given.get("clip_space") == "log":
            return 0.4  # from GMPO's released code
        return 0.2  # the middle of the grid in appendix A

    return default


OPTIONS: dict[str, Option] = {
    "tau_neg": Option(
        "temperature of the gate if the advantage is not positive", _tau_default(of_sigmoid=1.0, of_others=0.3)
    ),
    "tau_pos": Option(
        "temperature of the gate if the advantage is positive", _tau_default(of_sigmoid=1.05, of_others=0.2)
    ),
    "eps_low": Option(
        "gates clip and cegppo: 1 - eps_low is the lower bound of the ratio if the advantage is not positive",
        _eps_default(of_sequence=3e-4, of_cispo=0.2),
    ),
    "eps_high": Option(
        "gates clip and cegppo: 1 + eps_high is the upper bound of the ratio if the advantage is "
        "positive; gate cispo: 1 + eps_high is the upper bound of the token weight, for any advantage",
        _eps_default(
            of_sequence=4e-4, of_cispo=4.0
        ),  # ρ <= 5 is ScaleRL's cap (arXiv 2510.13786); CISPO's authors give none
    ),
    "clip_space": Option(
        "gate clip, except in grpo, gspo and luspo: clip the ratio (eq. 7) or its logarithm",
        lambda aggregation, gate, given: "ratio",
        choices=("ratio", "log"),
        absent_from=("grpo", "gspo", "luspo"),  # these clip the ratio; only GMPO's paper and code differ
    ),
    "alpha": Option("gate pspo: weight of the old policy in the smoothed policy", lambda aggregation, gate, given: 0.1),
    # Defaults of the released code of CE-GPPO.
    "beta_low": Option(
        "gate cegppo: scale of the gradient of ratios below the clip range", lambda aggregation, gate, given: 0.75
    ),
    "beta_high": Option(
        "gate cegppo: scale of the gradient of ratios above the clip range", lambda aggregation, gate, given: 1.0
    ),
}
BY_SIGN = {"tau": ("tau_neg", "tau_pos")}
"""Parameters of gates whose value depends on the sign of the advantage: (Â <= 0, Â > 0)."""


LARGEST = 10**9
"""Largest accepted temperature or clip range. In float32, gates are the identity at far smaller values already."""


def check_values(resolved: Mapping[str, Any]) -> None:
    """Raise UserError if an option is out of range. The caller checks that numeric options are numbers."""
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
            f"eps_low = {numbers['eps_low']} leaves no lower bound 1 - eps_low > 0; choose a value below 1{instead}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer too large for a float
        return math.inf
