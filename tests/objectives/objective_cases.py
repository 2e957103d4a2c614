"""The objectives under test, and random ragged batches for them."""

import paper_in_mpmath as paper
import torch

CLIP = {"eps_low": 0.2, "eps_high": 0.3}
TAU = {"tau_neg": 0.3, "tau_pos": 0.2}

# name: (arguments of build_objective, the paper's aggregation, the paper's gate, the gate's options)
NINE = {
    "grpo": ({"method": "grpo", **CLIP}, paper.arithmetic, paper.clip, CLIP),
    "gspo": (
        {"method": "gspo", "eps_low": 0.03, "eps_high": 0.04},
        paper.sequence,
        paper.clip,
        {"eps_low": 0.03, "eps_high": 0.04},
    ),
    "gmpo": ({"method": "gmpo", **CLIP}, paper.geometric, paper.clip, CLIP),
    "sapo": (
        {"method": "sapo", "tau_neg": 1.05, "tau_pos": 1.5},
        paper.arithmetic,
        paper.sigmoid,
        {"tau_neg": 1.05, "tau_pos": 1.5},
    ),
    "sspo-expsig": ({"method": "sspo", "gate": "expsig", **TAU}, paper.geometric, paper.expsig, TAU),
    "sspo-expatan": ({"method": "sspo", "gate": "expatan", **TAU}, paper.geometric, paper.expatan, TAU),
    "sspo-gumbel": ({"method": "sspo", "gate": "gumbel"}, paper.geometric, paper.gumbel, {}),
    "sspo-atanlog": ({"method": "sspo", **TAU}, paper.geometric, paper.atanlog, TAU),
    "sspo-siglog": ({"method": "sspo", "gate": "siglog", **TAU}, paper.geometric, paper.siglog, TAU),
}
CE = {**CLIP, "beta_low": 0.75, "beta_high": 1.25}
# Published methods that are not in the paper.
OTHERS = {
    "luspo": (
        {"method": "luspo", "eps_low": 0.03, "eps_high": 0.04},
        paper.sequence,
        paper.clip,
        {"eps_low": 0.03, "eps_high": 0.04},
    ),
    "cispo": ({"method": "cispo", "eps_high": 0.3}, paper.arithmetic, paper.cispo, {"eps_high": 0.3}),
    "pspo": ({"method": "pspo", "alpha": 0.2}, paper.arithmetic, paper.pspo, {"alpha": 0.2}),
    "cegppo": ({"method": "cegppo", **CE}, paper.arithmetic, paper.cegppo, CE),
}
LOG_CLIP = {**CLIP, "clip_space": "log"}
CASES = {
    **NINE,
    **OTHERS,
    "geometric-cispo": (
        {"method": "geometric", "gate": "cispo", "eps_high": 0.3},
        paper.geometric,
        paper.cispo,
        {"eps_high": 0.3},
    ),
    "gmpo-log": ({"method": "gmpo", **LOG_CLIP}, paper.geometric, paper.clip, LOG_CLIP),
    "arithmetic-atanlog": ({"method": "arithmetic", "gate": "atanlog", **TAU}, paper.arithmetic, paper.atanlog, TAU),
    "arithmetic-gumbel": ({"method": "arithmetic", "gate": "gumbel"}, paper.arithmetic, paper.gumbel, {}),
    "geometric-sigmoid": ({"method": "geometric", "gate": "sigmoid", **TAU}, paper.geometric, paper.sigmoid, TAU),
    "sequence-expsig": ({"method": "sequence", "gate": "expsig", **TAU}, paper.sequence, paper.expsig, TAU),
    "sequence-sigmoid": ({"method": "sequence", "gate": "sigmoid", **TAU}, paper.sequence, paper.sigmoid, TAU),
    "sequence-siglog": ({"method": "sequence", "gate": "siglog", **TAU}, paper.sequence, paper.siglog, TAU),
}


def ragged_batch(seed, dtype, rows=8, length=9):
    """Return log_ratio [B, T], NaN or inf where masked, advantages [B] of both signs and 0, and mask [B, T] with inner gaps."""
    generator = torch.Generator().manual_seed(seed)
    # The first rows have ratios near 1, where the gates bend; later rows are ever further off-policy, where the gates are flat.
    scale = torch.logspace(-3, 0.3, rows, dtype=torch.float64)[:, None]
    log_ratio = torch.randn(rows, length, generator=generator, dtype=torch.float64) * scale
    mask = torch.rand(rows, length, generator=generator) < 0.7
    mask[:, 0] |= ~mask.any(1)
    garbage = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30], dtype=torch.float64)
    garbage = garbage[torch.randint(4, (rows, length), generator=generator)]
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    advantages[rows // 2] = 0.0
    return torch.where(mask, log_ratio, garbage).to(dtype), advantages.to(dtype), mask
