"""What runs in a worker process: the symbolic comparison. The only module here that loads sympy."""

import logging
import resource
import signal

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

# Units stay: `t`, `d` and `m` are in its list of them, and `3t` would be 3. LaTeX alone is read: of other text it would take
# the last number, the 2 of `2^{\\aleph_0}`.
READ_AS = (
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
        )
    ),
)
MEMORY = 2 << 30  # bytes of address space that a worker may use


def prepare_worker() -> None:
    """Makes a worker safe to kill and unable to take the machine, and loads what sympy loads at first use."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler in Python would wait for the end of a long multiplication
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    equal(r"x \in [1,2]", r"\text{Yes}", limit=60.0)


def equal(prediction: str, gold: str, limit: float) -> bool:
    """Whether math-verify finds both the same. Its own time limits are signals that overshoot; the caller kills instead.

    After `limit` seconds the process ends by itself, should its caller have been killed and left it behind.
    """
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        expected = parse(f"${gold}$", READ_AS, parsing_timeout=None)
        given = parse(f"\\boxed{{{prediction}}}", READ_AS, parsing_timeout=None)
        return verify(expected, given, timeout_seconds=None, allow_set_relation_comp=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
