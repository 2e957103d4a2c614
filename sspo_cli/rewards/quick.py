"""Verdicts without computer algebra, for answers that do not need it and for answers that only repeat the question."""

import re
from collections.abc import Sequence
from fractions import Fraction

from sspo_cli.rewards.notation import command, in_latex, with_logarithms
from sspo_cli.rewards.numbers import agree, number, places_of, value_of, with_decimal_comma
from sspo_cli.rewards.prose import STATED, TEXT, measured, names_a_variable, said, same_unit, same_words, states
from sspo_cli.rewards.reading import MAX_LENGTH, is_bare, peel

_PERCENT = re.compile(r"(?<=\d)\s*(?:per ?cent|pct\.?)$", re.IGNORECASE)
READABLE = 100  # most characters of a number that `respell` writes differently
_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\d+/\d+|\\frac\{\d+\}\{\d+\})")
_LITERAL = re.compile(  # except for exponents and indices
    r"(?:(?<![\w)\]}%])[+-])?(?<![\d.])(?<![\^_])(?<![\^_]\{)"
    r"(?:(?:\d{1,3}(?:(?:,|,?\\[!,] ?|\{,\}|[ \u00a0\u2009\u202f])\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
)
# `10^3`, `1.5 \times 10^{3}` and roots of a number are accepted as final answers: they have no shorter form.
_WRAPPING = r"(?:[\s\[\](){}$]|\\left|\\right|\\sqrt)*"
_POWER_OR_ROOT = re.compile(
    rf"{_WRAPPING}[+-]?(?:\d+(?:\.\d+)?\s*(?:\\times|\\cdot|\*)\s*(?=10\s*\^))?\d+(?:\s*\^\s*\{{?\d+\}}?)?{_WRAPPING}"
)
_OPERATION = re.compile(r"[\w)\]}]\s*(?:[+*-]|\\(?:times|cdot|div|[bp]?mod)(?![A-Za-z]))")
_FUNCTION = re.compile(
    r"\\(?!(?:[dct]?frac|sqrt|left|right|text\w*|math\w*|circ|quad|degree|pi)(?![A-Za-z]))[A-Za-z]{2,}|[!|]"
)
_IN_BASE = re.compile(r"([\dA-Za-z]+)_\s*\{?\s*(\d+)\s*\}?")
_SIDES = re.compile(r"=(?![^{}]*\})")  # but not the sign in `\sum_{i=1}`
# Inequalities and alternatives, which do not give a single value.
_UNDECIDED = re.compile(
    r"[<>∨]|(?<![A-Za-z])or(?![A-Za-z])|\\(?:[lg]eq?|[lg]t|neq?|not|pm|mp|lor|vee)(?![A-Za-z])", re.IGNORECASE
)
_SEVERAL = re.compile(r"[,;<>]|\band\b|\\(?:cup|infty|in|begin)(?![A-Za-z])")
_MODULUS = re.compile(r"(?:\s|\\[,;:! ])*(?:\\pmod(?![A-Za-z])|\(\s*(?:\\text\s*\{\s*)?\\?mod\b).*$")
_CHOICE = r"(?P<lead>[\w ,]*?\b(?:answer|option|choice)(?:\s+is)?(?:\s+(?:option|choice))?[\s:*]+)?"
_LETTER = re.compile(rf"{_CHOICE}\(?(?P<letter>[A-J])\)?[.*]*", re.IGNORECASE)
_OPTION = re.compile(
    rf"{_CHOICE}(?:\((?P<enclosed>[A-J])\)|(?P<marked>[A-J])\s*[).:])\s+(?=[\w$\\(-])(?P<text>.+)",
    re.DOTALL | re.IGNORECASE,
)


def prepared(prediction: str | None, gold: str) -> tuple[str | None, str]:
    """Normalize an answer and its gold for comparison: strip wrapping and compatible units, translate into LaTeX."""
    gold = _PERCENT.sub(r"\\%", peel(gold))
    if not prediction or len(prediction := peel(prediction)) > MAX_LENGTH:
        return prediction, in_latex(gold)
    if prediction == gold or (_PLAIN.fullmatch(prediction) and _PLAIN.fullmatch(gold)):
        return prediction, gold
    expected, unit = measured(gold)
    prediction = _PERCENT.sub(r"\\%", prediction)
    given, given_unit = measured(prediction, glued=bool(unit))
    letters = not unit and names_a_variable(gold)
    if same_unit(given_unit, unit) and not letters and not (unit and given.endswith("%")):
        prediction, gold = given, expected
    prediction, gold = in_latex(prediction), in_latex(gold)
    if "mod" not in gold:
        prediction = _MODULUS.sub("", prediction)
    return with_logarithms(prediction, gold), with_logarithms(gold, gold)


def quick_verdict(prediction: str, gold: str) -> bool | None:
    """Return the verdict on an answer and a gold, both normalized by `prepared`, or None if computer algebra must decide.

    If the gold is a number, an unevaluated expression is wrong even if its value is right: `3+5-2` or `\\binom{10}{3}`
    repeats the question and would earn the reward without solving it. `41 or 42` is wrong for a single-valued gold.
    """
    if prediction == gold:
        return True
    if (expected := value_of(gold)) is not None and (given := value_of(prediction)) is not None:
        return agree(given, expected, decimal="." in prediction, gold_decimal="." in gold, places=places_of(gold))
    if len(prediction) > MAX_LENGTH or "\\boxed" in prediction:  # a box that `peel` did not strip is denied or unclosed
        return False
    if same_words(prediction, gold) or said(prediction, gold):
        return True
    if (chosen := _chosen(prediction, gold)) is not None:
        return chosen
    based, in_base = _IN_BASE.fullmatch(prediction), _IN_BASE.fullmatch(gold)
    if based and in_base:
        return based.groups() == in_base.groups()
    if based and based[2] != "10" and number(gold) is not None:
        return False
    return _by_value(*without_percent(prediction, gold))


def respell(gold: str) -> str:
    """Write a gold from `read_gold` in another form, such as `2.0` for `2`, to test that equal answers are accepted."""
    value = value_of(in_latex(gold))
    if value is not None:
        spelt = (
            f"{value.numerator}.0" if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
        )
        return spelt if len(spelt) <= READABLE else rf"\boxed{{{gold}}}"
    words = TEXT.sub(r"\1", gold)
    if STATED.fullmatch(words) and command(words) is None:
        return f"The answer is {words}."
    return rf"\boxed{{{gold}}}" if "$" in gold else f"The answer is ${gold}$."


def without_percent(prediction: str, gold: str) -> tuple[str, str, list[Fraction]]:
    """Strip the percent signs; also return the factors by which the answer may be multiplied to equal the gold.

    `35\\%` is right for 35, as in MATH's graders, and for 0.35.
    """
    percents = prediction.endswith("\\%"), gold.endswith("\\%")
    factors = [Fraction(1)]
    if percents == (True, False):
        factors.append(Fraction(1, 100))
    if percents == (False, True):
        factors.append(Fraction(100))
    return prediction.removesuffix("\\%").strip(), gold.removesuffix("\\%").strip(), factors


def _by_value(prediction: str, gold: str, factors: Sequence[Fraction]) -> bool | None:
    expected, given = value_of(gold), value_of(prediction)
    if expected is not None and given is None and expected % 1:
        given = with_decimal_comma(prediction)
    if expected is not None and given is not None:
        decimal, gold_decimal, places = "." in prediction, "." in gold, places_of(gold)
        return any(
            agree(given * factor, expected, decimal=decimal, gold_decimal=gold_decimal, places=places)
            for factor in factors
        )
    if _UNDECIDED.search(prediction) and not _UNDECIDED.search(gold) and not _SEVERAL.search(gold):
        return False
    if expected is None:
        return None
    *sides, last = map(peel, _SIDES.split(prediction))
    if any(value_of(side) not in (None, expected) for side in sides):  # `41 = 42`
        return False
    if sides and not _SEVERAL.search(prediction) and value_of(last) is not None:
        return _by_value(last, gold, factors)
    return None if _is_finished(last, expected) else False


def _is_finished(answer: str, expected: Fraction) -> bool:
    """Report whether an answer is fully evaluated; for an integer, it must be that integer written out."""
    if expected % 1:
        return not (_OPERATION.search(answer) or _FUNCTION.search(answer))
    if (value := number(answer)) is not None:
        return value == expected
    values = [number(literal[0]) for literal in _LITERAL.finditer(answer)]
    return is_bare(answer) and (values == [expected] or _POWER_OR_ROOT.fullmatch(answer) is not None)


def _chosen(prediction: str, gold: str) -> bool | None:
    """Return the verdict on a multiple-choice letter, with or without the option's text; None if there is no letter."""
    (letter, text), (gold_letter, gold_text) = _option(prediction), _option(gold)
    if not letter:
        return quick_verdict(prediction, gold_text) if gold_text else None
    if not gold_letter:
        return (text and quick_verdict(text, gold)) or None
    if letter != gold_letter:
        return False
    return quick_verdict(text, gold_text) if text and gold_text else True


def _option(answer: str) -> tuple[str | None, str | None]:
    """Split a multiple-choice option such as `B`, `(B)`, `option B` or `B. 12` into (letter, text); a missing part is None."""
    answer = TEXT.sub(r"\1", answer).replace("\\ ", " ").strip()
    for pattern in (_LETTER, _OPTION):
        if (match := pattern.fullmatch(answer)) and (not match["lead"] or states(f"{match['lead']} is")):
            parts = match.groupdict()
            letters = (parts.get(name) for name in ("letter", "enclosed", "marked"))
            return next(letter.upper() for letter in letters if letter), parts.get("text")
    return None, None
