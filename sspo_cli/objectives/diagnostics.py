"""Off-policy metrics of a minibatch, from its log ratios and token weights."""

import math
from typing import Any

import torch
from torch import Tensor

from sspo_cli.objectives.ratios import clean_log_ratio, token_mean

BIN_WIDTH = 0.05
EDGES = torch.arange(1, 24, dtype=torch.float64) / 20  # between the 24 bins; k / 20 is the float nearest to k · 0.05


def ratio_metrics(log_ratio: Tensor, advantages: Tensor, mask: Tensor, token_weights: Tensor) -> dict[str, float]:
    """Compute the off-policy metrics of a minibatch over its unmasked tokens.

    log_ratio [B, T]; advantages [B]; mask [B, T]; token_weights [B, T], as computed by Objective.token_weights

    Returns each metric over all completions, over those with Â > 0 (prefix `positive_`) and over those with Â < 0
    (`negative_`). A metric is omitted if there are no tokens to
    compute it from.

    ratio/log_mean, ratio/log_std  mean and standard deviation of d = log ρ
    ratio/log_abs_p99              99th percentile of |d|
    ratio/outside                  share of tokens with ρ outside 1 ± 0.2, for every gate
    ratio/dispersion               mean over completions of 1/|y_i| Σ_t (d_it - log s_i)², section 3
    ratio/kl                       mean of ρ - 1 - d, an estimate of KL(π_old ‖ π_θ)
    weights/mean                   mean of w over tokens with Â ≠ 0
    weights/attenuated             share of tokens with w < 0.5 among those with Â ≠ 0; a clipped token has w = 0
    """
    log_ratio, mask = clean_log_ratio(log_ratio.detach(), mask), mask.bool()
    deviation = log_ratio - token_mean(log_ratio, mask)[:, None]
    written = mask.any(-1)
    dispersion, completion_signs = token_mean(deviation**2, mask)[written], advantages[written].sign()
    token_signs = advantages.sign()[:, None].expand_as(mask)[mask]
    log_ratio, weights = log_ratio[mask], token_weights[mask]
    metrics = _of_ratios("", log_ratio, dispersion) | _of_weights("", weights[token_signs != 0])
    for name, sign in (("positive_", 1), ("negative_", -1)):
        metrics |= _of_ratios(name, log_ratio[token_signs == sign], dispersion[completion_signs == sign])
        metrics |= _of_weights(name, weights[token_signs == sign])
    return metrics


def weight_histogram(token_weights: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, Any]:
    """Count tokens by their weight w, separately for Â > 0 (`positive`) and Â < 0 (`negative`).

    Shapes as in `ratio_metrics`. There are 24 bins of `width` 0.05, from [0, 0.05) to [1.15, ∞). NaN is not counted.
    """
    mask = mask.bool().cpu()
    weights, signs = token_weights.cpu()[mask], advantages.cpu().sign()[:, None].expand_as(mask)[mask]
    # On-policy, w is 1 up to rounding errors, which must not move w into the bin below.
    bins = torch.bucketize(weights.double().round(decimals=6), EDGES, right=True)
    counted = ~weights.isnan()
    counts = {
        name: bins[counted & (signs == sign)].bincount(minlength=len(EDGES) + 1).tolist()
        for name, sign in (("positive", 1), ("negative", -1))
    }
    return {"width": BIN_WIDTH, **counts}


def _of_ratios(name: str, log_ratio: Tensor, dispersion: Tensor) -> dict[str, float]:
    if not len(log_ratio):
        return {}
    # Not torch.quantile, which refuses more than 2^24 values.
    p99 = log_ratio.abs().kthvalue(math.ceil(0.99 * len(log_ratio))).values
    excess = torch.expm1(log_ratio.double())  # ρ - 1
    return {
        f"ratio/{name}log_mean": _mean(log_ratio),
        f"ratio/{name}log_std": log_ratio.double().std(correction=0).item(),
        f"ratio/{name}log_abs_p99": p99.item(),
        f"ratio/{name}outside": _mean(excess.abs() > 0.2),
        f"ratio/{name}dispersion": _mean(dispersion),
        f"ratio/{name}kl": _mean(excess - log_ratio),
    }


def _of_weights(name: str, weights: Tensor) -> dict[str, float]:
    if not len(weights):
        return {}
    return {f"weights/{name}mean": _mean(weights), f"weights/{name}attenuated": _mean(weights < 0.5)}


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
