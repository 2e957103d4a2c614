"""Confidence intervals, paired tests and multiplicity corrections for shares and for differences between seeds.

Importing this package imports scipy.
"""

from sspo_cli.statistics.comparisons import (
    differences_are_equal,
    holm,
    mcnemar,
    paired_bootstrap,
    paired_t,
    sign_flip,
    sign_flip_of_seeds,
)
from sspo_cli.statistics.shares import attainable, pass_at_k, wilson

__all__ = [
    "attainable",
    "differences_are_equal",
    "holm",
    "mcnemar",
    "paired_bootstrap",
    "paired_t",
    "pass_at_k",
    "sign_flip",
    "sign_flip_of_seeds",
    "wilson",
]
