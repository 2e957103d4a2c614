"""The paper's objectives. A method combines an aggregation, a gate and a normalizer. Tensors in, tensors out.

>>> objective = build_objective(method="sspo", gate="atanlog", tau_neg=0.3, tau_pos=0.2)
>>> weights = objective.weights(log_ratio, advantages, mask)  # [B, T], [B], [B, T] -> [B]
>>> factors = objective.factors(mask.sum(1))  # of all completions of the minibatch
>>> loss = -(factors * weights * advantages).sum()
"""

from sspo_cli.objectives.advantages import group_advantages
from sspo_cli.objectives.diagnostics import ratio_metrics, weight_histogram
from sspo_cli.objectives.gates import GATES, OPTIONS, SSPO_GATES
from sspo_cli.objectives.methods import DEFAULT_METHOD, METHODS
from sspo_cli.objectives.normalizers import NORMALIZERS
from sspo_cli.objectives.objective import Objective, build_objective
from sspo_cli.objectives.options import resolve_options
from sspo_cli.objectives.penalties import has_kept_entropy, reference_kl

__all__ = [
    "DEFAULT_METHOD",
    "GATES",
    "METHODS",
    "NORMALIZERS",
    "OPTIONS",
    "SSPO_GATES",
    "Objective",
    "build_objective",
    "group_advantages",
    "has_kept_entropy",
    "ratio_metrics",
    "reference_kl",
    "resolve_options",
    "weight_histogram",
]
