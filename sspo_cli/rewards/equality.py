"""Symbolic comparison of answers, run in worker processes. The only module of this package that loads sympy."""

import logging
import re
import resource
import signal
from fractions import Fraction

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, grader, parse, verify
from sympy import Basic, Expr, Float, I, MatrixBase, MatrixExpr, Product, Rational, Sum, Symbol, expand_log

from sspo_cli.rewards.notation import with_both_signs
from sspo_cli.rewards.numbers import agree
from sspo_cli.rewards.quick import without_percent

# math-verify must not strip units: its list of units has `t`, `d` and `m`, so `3t` would become 3. Only its LaTeX parser is
# used: its parser of plain text takes the last number, such as the 2 of `2^{\\aleph_0}`.
READ_AS = (
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
        )
    ),
)
MEMORY = 2 << 30  # bytes of address space that a worker may use
PRECISION = 60  # digits to which exact numbers are evaluated; numbers that agree in 50 of them are equal

_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")

_library_numeric_eq = grader.sympy_numeric_eq


def prepare_worker() -> None:
    """Limit a worker's memory, let signals kill it immediately, and make one comparison to load sympy's lazy modules."""
    for ending in (signal.SIGTERM, signal.SIGPROF):
        signal.signal(ending, signal.SIG_DFL)  # a Python handler would run only after a long multiplication has ended
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    equal(r"x \in [1,2]", r"\text{Yes}", limit=60.0)


def equal(prediction: str, gold: str, limit: float) -> bool:
    """Report whether math-verify considers both answers equal, with numbers compared by `_numeric_eq`.

    limit  seconds of processor time after which the kernel kills this process with SIGPROF

    math-verify's own time limits are off: Python handles their signals only between bytecodes, so that a long
    multiplication would exceed them.
    """
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        prediction, gold, factors = without_percent(prediction, gold)
        if ("\\pm" in prediction) != ("\\pm" in gold):
            prediction, gold = with_both_signs(prediction), with_both_signs(gold)
        expected = parse(f"${gold}$", READ_AS, parsing_timeout=None)
        multiples = [prediction if factor == 1 else _multiple(prediction, factor) for factor in factors]
        readings = [parse(f"\\boxed{{{multiple}}}", READ_AS, parsing_timeout=None) for multiple in multiples]
        if _IMAGINARY.search(f"{prediction} {gold}"):
            expected, *readings = ([_complex(part) for part in parts] for parts in (expected, *readings))
        return any(verify(expected, given, timeout_seconds=None, allow_set_relation_comp=True) for given in readings)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _complex(expression: Basic | MatrixBase | str) -> Basic | MatrixBase | str:
    """Replace `i` by the imaginary unit and the other symbols, which math-verify assumes to be real, by complex symbols."""
    if not isinstance(expression, Basic) or expression.has(Sum, Product):
        return expression
    symbols = {symbol: Symbol(symbol.name) if symbol.name != "i" else I for symbol in expression.free_symbols}
    return expression.xreplace(symbols)


def _multiple(answer: str, factor: Fraction) -> str:
    return rf"\frac{{{factor.numerator}}}{{{factor.denominator}}} \cdot ({answer})"


def _numeric_eq(gold: Basic | MatrixBase, given: Basic | MatrixBase, *settings: int) -> bool:
    """Compare numbers exactly or by the digits of their decimals.

    This function replaces math-verify's function, whose absolute tolerance makes `3.4 \\cdot 10^{-31}` equal `7 \\cdot 10^{-20}`.
    Matrices are passed to math-verify's function, which calls this one for each pair of elements.
    """
    if isinstance(gold, MatrixBase | MatrixExpr) or isinstance(given, MatrixBase | MatrixExpr):
        return _library_numeric_eq(gold, given, *settings)
    if not (isinstance(gold, Expr) and isinstance(given, Expr)):
        return False
    decimals = [expression.has(Float) for expression in (given, gold)]
    given, gold = (_with_rationals(grader.safe_sympy_doit(expression)) for expression in (given, gold))
    if gold == given:
        return True
    if gold.free_symbols or given.free_symbols:
        return expand_log((gold - given).expand(), force=True).expand() == 0  # `force` assumes positive arguments
    if not any(decimals) and not (gold.is_Rational and given.is_Rational):
        gold, given = gold.evalf(PRECISION), given.evalf(PRECISION)
        return bool(abs(gold - given) < Float(10, PRECISION) ** (10 - PRECISION) * abs(gold))
    value, expected = _as_fraction(given), _as_fraction(gold)
    if value is None or expected is None:
        return False
    return agree(value, expected, decimal=decimals[0], gold_decimal=decimals[1])


def _with_rationals(expression: Expr) -> Expr:
    return expression.replace(lambda part: part.is_Float, lambda part: Rational(str(part)))


def _as_fraction(expression: Expr) -> Fraction | None:
    value = expression if expression.is_Rational else expression.evalf(PRECISION)
    return Fraction(str(value)) if value.is_Float or (value.is_Rational and value.is_finite) else None


grader.sympy_numeric_eq = _numeric_eq
