"""How sure a share is."""

from scipy.stats import binomtest


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
