"""A gate of your own: `sspo train --gate own_gate:tanhlog`, started in this folder.

A gate maps the log ratio d = log ρ to log f, elementwise. Before the run starts, sspo checks it against the paper's conditions:
(i) f is continuously differentiable, (ii) f(1) = 1 and f'(1) = 1, (iii) a bell shape around ρ = 1, (iv) f is non-decreasing.
"""

import torch
from torch import Tensor


def tanhlog(log_ratio: Tensor, tau: Tensor) -> Tensor:
    """Compute log f = τ tanh(d / τ); its token weight ρ f'/f = 1 / cosh²(d / τ) falls faster than atanlog's.

    log_ratio [B, T]; tau [B, 1], objective.tau_pos or objective.tau_neg by the sign of each advantage  ->  [B, T]
    """
    return tau * torch.tanh(log_ratio / tau)


if __name__ == "__main__":
    from sspo_cli.objectives import build_objective

    objective = build_objective(method="sspo", gate=tanhlog, tau_neg=0.3, tau_pos=0.2)
    ratio = torch.tensor([[0.5, 0.9, 1.0, 1.1, 2.0]])
    weights = objective.token_weights(ratio.log(), torch.ones(1), torch.ones_like(ratio))
    for rho, weight in zip(ratio[0].tolist(), weights[0].tolist(), strict=True):
        print(f"ρ = {rho:.1f}   w = {weight:.3f}")
