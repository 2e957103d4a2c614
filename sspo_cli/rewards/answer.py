"""r_answer: whether an answer equals the gold answer."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Self

from sspo_cli.errors import UserError
from sspo_cli.rewards.notation import in_latex, measured_as, with_both_signs
from sspo_cli.rewards.pool import LastingPool
from sspo_cli.rewards.reading import MAX_LENGTH, is_bare, peel, same_words

CACHE_SIZE = 1 << 16
GRACE = 10.0  # seconds after its limit when a worker ends by itself

_SEPARATOR = r"(?:,|,?\\[!,] ?|\{,\}|[ \u00a0\u2009\u202f])"
_NUMBER = re.compile(
    rf"(?P<sign>[+-])?(?:\\?[$€£¥₹])?(?P<digits>\d{{1,40}}|\d{{1,3}}(?:{_SEPARATOR}\d{{3}}){{1,12}})?"
    r"(?P<decimals>\.\d{1,40})?"
    r"(?:(?:[eE]|\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?P<brace>\{)?)(?P<exponent>[+-]?\d{1,3})(?(brace)\}))?"
)
_LITERAL = re.compile(  # but for exponents and indices
    r"(?:(?<![\w)\]}%])[+-])?(?<![\d.])(?<![\^_])(?<![\^_]\{)"
    rf"(?:(?:\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
)
# `10^3`, `1.5 \times 10^{3}` and roots of a number are finished: nothing shorter says what they say.
_WRAPPING = r"(?:[\s\[\](){}$]|\\left|\\right|\\sqrt)*"
_POWER_OR_ROOT = re.compile(
    rf"{_WRAPPING}[+-]?(?:\d+(?:\.\d+)?\s*(?:\\times|\\cdot|\*)\s*(?=10\s*\^))?\d+(?:\s*\^\s*\{{?\d+\}}?)?{_WRAPPING}"
)
_OPERATION = re.compile(r"[\w)\]}]\s*(?:[+*-]|\\(?:times|cdot|div|[bp]?mod)(?![A-Za-z]))")
_FUNCTION = re.compile(
    r"\\(?!(?:[dct]?frac|sqrt|left|right|text\w*|math\w*|circ|quad|degree)(?![A-Za-z]))[A-Za-z]{2,}|[!|]"
)
_RATIO = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>\d{1,40})\s*(?:\s(?=\d)|(?=\\)))?"
    r"(?:(\d{1,40})/(\d{1,40})|\\[dct]?frac\s*(?:(\d)|\{(\d{1,40})\})\s*(?:(\d)|\{(\d{1,40})\}))"
)
_REPEATING = re.compile(r"(-?)(\d{0,40})\.(\d{0,40})\\(?:overline|bar)\s*\{(\d{1,40})\}")
_IN_BASE = re.compile(r"([\dA-Z]+)_\s*\{?\s*(\d+)\s*\}?")
_DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d{1,2}|\d{4,})")
_SIDES = re.compile(r"=(?![^{}]*\})")  # not that of `\sum_{i=1}`
# Inequalities and alternatives: they name no single value.
_UNDECIDED = re.compile(
    r"[<>∨]|(?<![A-Za-z])or(?![A-Za-z])|\\(?:[lg]eq?|[lg]t|neq?|not|pm|mp|lor|vee)(?![A-Za-z])", re.IGNORECASE
)
_SEVERAL = re.compile(r"[,;<>]|\band\b|\\(?:cup|infty|in|begin)(?![A-Za-z])")


def prepared(prediction: str | None, gold: str) -> tuple[str | None, str]:
    """Both as they are compared: peeled, in one notation, without units."""
    gold = in_latex(peel(gold))
    if not prediction or len(prediction := peel(prediction)) > MAX_LENGTH:
        return prediction, gold
    return measured_as(in_latex(prediction), gold), gold


def quick_verdict(prediction: str, gold: str) -> bool | None:
    """The verdict on answers as `prepared` that needs no computer algebra; None where it does.

    Where the gold is a number, an expression in its place is wrong even where its value is right: `3+5-2` or
    `\\binom{10}{3}` repeats the question, and would earn the reward without an answer. So is `41 or 42` for a single value.
    """
    if prediction == gold:
        return True
    if len(prediction) > MAX_LENGTH or "\\boxed" in prediction:  # what peeling has left is denied, or never ends
        return False
    if same_words(prediction, gold):
        return True
    based, in_base = _IN_BASE.fullmatch(prediction), _IN_BASE.fullmatch(gold)
    if based and in_base:
        return based.groups() == in_base.groups()
    expected, given = _value(gold), _value(prediction)
    if expected is not None and given is None and expected % 1 and (comma := _DECIMAL_COMMA.fullmatch(prediction)):
        given = _number(".".join(comma.groups()))
    if expected is not None and given is not None:
        if expected == given:
            return True
        exact = expected % 1 == given % 1 == 0 or "." not in prediction + gold
        return False if exact else None  # decimals may be rounded
    if _UNDECIDED.search(prediction) and not _UNDECIDED.search(gold) and not _SEVERAL.search(gold):
        return False
    if expected is None:
        return None
    *sides, last = map(peel, _SIDES.split(prediction))
    if any(_value(side) not in (None, expected) for side in sides):  # `41 = 42`
        return False
    if sides and _value(last) == expected and not _SEVERAL.search(prediction):
        return True
    return None if _is_finished(last, expected) else False


def _is_finished(answer: str, expected: Fraction) -> bool:
    """Whether it is a number written out, for an integer that very number."""
    if expected % 1:
        return not (_OPERATION.search(answer) or _FUNCTION.search(answer))
    if (value := _number(answer)) is not None:
        return value == expected
    values = [_number(literal[0]) for literal in _LITERAL.finditer(answer)]
    return is_bare(answer) and (values == [expected] or _POWER_OR_ROOT.fullmatch(answer) is not None)


def _number(text: str) -> Fraction | None:
    """The value of a plain number, with separators of thousands, a currency or an exponent of ten."""
    number = _NUMBER.fullmatch(text)
    if not number or not (number["digits"] or number["decimals"]):
        return None
    digits = "".join(filter(str.isdecimal, number["digits"] or "")) + (number["decimals"] or "")
    value = Fraction(digits) * Fraction(10) ** int(number["exponent"] or 0)
    return value if number["sign"] in (None, "+") else -value


def _value(text: str) -> Fraction | None:
    """That of a plain or repeating number, of a ratio of integers that is none itself, or of a mixed number (`2 1/2`)."""
    if repeating := _REPEATING.fullmatch(text):
        sign, whole, once, again = repeating.groups()
        rest = Fraction(int(again), 10 ** len(once) * (10 ** len(again) - 1))
        return (Fraction(f"{whole or 0}.{once or 0}") + rest) * (-1 if sign else 1)
    if not (ratio := _RATIO.fullmatch(text)):
        return _number(text)
    numerator, denominator = (int(digits) for digits in ratio.groups()[2:] if digits)
    if not denominator or numerator % denominator == 0:
        return None
    return (int(ratio["whole"] or 0) + Fraction(numerator, denominator)) * (-1 if ratio["sign"] else 1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the answers are equal, and how the check ended.

    status  "ok", "timeout", "error" (the comparison failed, as when its worker died) or "no answer"
    """

    equal: bool
    status: str


class AnswerChecker:
    """Compares answers by value. What computer algebra must decide runs in worker processes that are killed at the limit.

    A context manager. The workers start at the first answer that needs them and end with the block. Verdicts are kept, so
    the same pair is decided once.

    timeouts  checks that ran out of time so far
    """

    def __init__(self, *, workers: int | None = None, timeout: float = 3.0) -> None:
        """`timeout` in seconds, for each check. By default as many workers as there are cores, but no more than four."""
        self.timeouts = 0
        self._workers = workers or min(4, os.cpu_count() or 1)
        self._timeout = timeout
        self._pool: LastingPool | None = None
        self._decide = lru_cache(CACHE_SIZE)(self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decide.cache_clear()
        if self._pool:
            self._pool.close()
            self._pool = None

    def check(self, pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
        """A verdict for each pair of an extracted answer, or None, and the gold answer, in their order."""
        pending = [self.submit(prediction, gold) for prediction, gold in pairs]
        return [verdict.result() for verdict in pending]

    def submit(self, prediction: str | None, gold: str) -> Future[Verdict]:
        """The same for one pair, without waiting."""
        return self._decide(*prepared(prediction, gold))

    def _start(self, prediction: str | None, gold: str) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()
        if not prediction:
            verdict.set_result(Verdict(False, "no answer"))
        elif (quick := quick_verdict(prediction, gold)) is not None:
            verdict.set_result(Verdict(quick, "ok"))
        else:
            if ("\\pm" in prediction) != ("\\pm" in gold):
                prediction, gold = with_both_signs(prediction), with_both_signs(gold)
            self._schedule(prediction, gold).add_done_callback(lambda done: self._settle(verdict, done))
        return verdict

    def _settle(self, verdict: Future[Verdict], check: Future[bool]) -> None:
        try:
            verdict.set_result(Verdict(check.result(), "ok"))
        except TimeoutError:
            self.timeouts += 1
            verdict.set_result(Verdict(False, "timeout"))
        except UserError as error:  # no fault of the answer: whoever waits for the verdict gets it
            verdict.set_exception(error)
        except Exception:  # the worker died or ran out of memory
            verdict.set_result(Verdict(False, "error"))

    def _schedule(self, prediction: str, gold: str) -> Future[bool]:
        from sspo_cli.rewards import equality  # loads sympy, which many runs never need

        if self._pool is None:
            self._pool = LastingPool(self._workers, initializer=equality.prepare_worker)
        arguments = (prediction, gold, self._timeout + GRACE)
        return self._pool.schedule(equality.equal, arguments, timeout=self._timeout)
