"""What the log ratios and token weights of a minibatch tell about how far off-policy it is."""

import math

import torch
from torch import Tensor

from sspo_cli.objectives.ratios import clean_log_ratio, token_mean


class Diagnostics:
    """Collects the micro-batches of one minibatch; the summary does not depend on how it was split or padded.

    Only tokens under the mask are kept, so that micro-batches of different T go together.
    """

    def __init__(self) -> None:
        self._log_ratio: list[Tensor] = []
        self._token_weights: list[Tensor] = []
        self._advantages: list[Tensor] = []
        self._dispersion: list[Tensor] = []

    def add(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor, token_weights: Tensor) -> None:
        """log_ratio [B, T]; advantages [B]; mask [B, T]; token_weights [B, T], of Objective.token_weights."""
        log_ratio, mask = clean_log_ratio(log_ratio.detach(), mask), mask.bool()
        deviation = log_ratio - token_mean(log_ratio, mask)[:, None]
        self._dispersion.append(token_mean(deviation**2, mask)[mask.any(-1)])
        self._log_ratio.append(log_ratio[mask])
        self._token_weights.append(token_weights[mask])
        self._advantages.append(advantages[:, None].expand_as(mask)[mask])

    def summary(self) -> dict[str, float]:
        """Over all tokens added, but the dispersion over completions. Keys without a token are left out.

        ratio/log_mean, ratio/log_std  of d
        ratio/log_abs_p99              99th percentile of |d|
        ratio/dispersion               mean over completions of 1/|y_i| Σ_t (d_it - log s_i)², section 3
        ratio/kl                       mean of ρ - 1 - d, an estimate of KL(π_old ‖ π_θ)
        weights/attenuated             share of tokens with w < 0.5 where Â ≠ 0; positive_, negative_ by its sign
        weights/positive_mean          mean of w where Â > 0; likewise negative_mean
        """
        log_ratio = torch.cat(self._log_ratio) if self._log_ratio else torch.empty(0)
        if not len(log_ratio):
            return {}
        weights, advantages = torch.cat(self._token_weights), torch.cat(self._advantages)
        # Not torch.quantile, which refuses more than 2^24 values.
        p99 = log_ratio.abs().kthvalue(math.ceil(0.99 * len(log_ratio))).values
        summary = {
            "ratio/log_mean": _mean(log_ratio),
            "ratio/log_std": log_ratio.double().std(correction=0).item(),
            "ratio/log_abs_p99": p99.item(),
            "ratio/dispersion": _mean(torch.cat(self._dispersion)),
            "ratio/kl": _mean(torch.expm1(log_ratio.double()) - log_ratio),
        }
        attenuated = weights < 0.5
        if (advantages != 0).any():
            summary["weights/attenuated"] = _mean(attenuated[advantages != 0])
        for sign, tokens in (("positive", advantages > 0), ("negative", advantages < 0)):
            if tokens.any():
                summary[f"weights/{sign}_mean"] = _mean(weights[tokens])
                summary[f"weights/{sign}_attenuated"] = _mean(attenuated[tokens])
        return summary


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
