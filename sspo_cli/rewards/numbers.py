"""Exact values of written numbers: integers, decimals, fractions, mixed and repeating numbers."""

import re
from fractions import Fraction

# Digits in groups of three. A point separates groups only if there are two points, or decimals after a comma, because
# `1.234` alone is a decimal.
_COMMA = r"(?:,|,?\\[!,:; ] ?|\{,\}|[ \u00a0\u2009\u202f])"
_GROUPED = rf"\d{{1,3}}(?:{_COMMA}\d{{3}}){{1,12}}|\d{{1,3}}(?:'\d{{3}}){{1,12}}|\d{{1,2}}(?:,\d\d){{1,6}},\d{{3}}"
_POINTED = r"\d{1,3}(?:\.\d{3}){2,12}(?:,\d{1,40})?|\d{1,3}\.\d{3},\d{1,2}"
_NUMBER = re.compile(
    rf"(?P<sign>[+-])?(?:(?P<pointed>{_POINTED})|(?P<digits>{_GROUPED}|\d{{1,40}})?(?P<decimals>\.\d{{1,40}})?)"
    r"(?:(?:[eE]|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?P<brace>\{)?)(?P<exponent>[+-]?\d{1,3})(?(brace)\}))?"
)
_RATIO = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>\d{1,40})\s*(?:\s(?=\d)|(?=\\)))?"
    r"(?:(\d{1,40})/(\d{1,40})|\\[dct]?frac\s*(?:(\d)|\{(-?\d{1,40})\})\s*(?:(\d)|\{(\d{1,40})\}))"
)
_REPEATING = re.compile(r"(-?)(\d{0,40})\.(\d{0,40})\\(?:overline|bar)\s*\{(\d{1,40})\}")
_DECIMAL = re.compile(r"[+-]?[\d,]*\.(\d+)")
_DECIMAL_COMMA = re.compile(r"([+-]?\d{1,40}),(\d{1,2}|\d{4,40})")


def number(text: str) -> Fraction | None:
    """Return the value of a plain number, also with thousands separators and an exponent of ten, or None for any other text."""
    match = _NUMBER.fullmatch(text)
    if not match or not (match["pointed"] or match["digits"] or match["decimals"]):
        return None
    if match["pointed"]:
        digits = match["pointed"].replace(".", "").replace(",", ".")
    else:
        digits = "".join(filter(str.isdecimal, match["digits"] or "")) + (match["decimals"] or "")
    value = Fraction(digits) * Fraction(10) ** int(match["exponent"] or 0)
    return -value if match["sign"] == "-" else value


def value_of(text: str) -> Fraction | None:
    """Return the value of a plain or repeating number, a mixed number (`2 1/2`) or a ratio, or None for any other text.

    Also returns None for a ratio that equals an integer, such as `6/3`, because it is an unfinished computation.
    """
    if repeating := _REPEATING.fullmatch(text):
        sign, whole, once, again = repeating.groups()
        rest = Fraction(int(again), 10 ** len(once) * (10 ** len(again) - 1))
        return (Fraction(f"{whole or 0}.{once or 0}") + rest) * (-1 if sign else 1)
    if not (ratio := _RATIO.fullmatch(text)):
        return number(text)
    numerator, denominator = (int(digits) for digits in ratio.groups()[2:] if digits)
    if not denominator or numerator % denominator == 0:
        return None
    return (int(ratio["whole"] or 0) + Fraction(numerator, denominator)) * (-1 if ratio["sign"] else 1)


def with_decimal_comma(text: str) -> Fraction | None:
    """Return the value of a number with a decimal comma (`1,5` is 1.5), or None for any other text."""
    match = _DECIMAL_COMMA.fullmatch(text)
    return Fraction(f"{match[1]}.{match[2]}") if match else None


def agree(given: Fraction, expected: Fraction, *, decimal: bool, gold_decimal: bool, places: int | None = None) -> bool:
    """Report whether two numbers are equal, exactly or to the precision of their decimals as written.

    Numbers written without decimals must be exactly equal. If either is a decimal, they must agree to six digits. If the
    gold is a decimal of more than six digits, the answer must round to it. An answer with more digits than the gold decimal
    is accepted if it rounds to the gold and is within one percent of it, so that 0.24 does not match 0.2.

    decimal       the answer is written as a decimal
    gold_decimal  the gold is written as a decimal
    places        number of decimals of the gold as written, such as 2 for 12.50; None: as many as its value needs
    """
    difference = abs(given - expected)
    if not difference or not (decimal or gold_decimal):
        return not difference
    tolerance = min(Fraction(1, 2_000_000), abs(expected) / 200_000)
    if not gold_decimal or expected.denominator == 1:
        return difference <= tolerance
    places = _decimal_places(expected) if places is None else places
    if difference <= min(tolerance, Fraction(1, 2 * 10**places)):
        return True
    return difference <= abs(given) / 100 and 2 * difference <= Fraction(1, 10**places)


def places_of(text: str) -> int | None:
    """Count the written decimals of a plain decimal, such as 2 for `12.50`; return None for any other text."""
    match = _DECIMAL.fullmatch(text)
    return len(match[1]) if match else None


def _decimal_places(value: Fraction) -> int:
    """Count the decimals that a value needs; return 400, more than any number here has, if it needs infinitely many."""
    return next((places for places in range(400) if 10**places % value.denominator == 0), 400)
