"""r_answer: the answer in a completion, and whether it equals the gold answer."""

import multiprocessing
import os
import re
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from pebble import ProcessPool

MAX_LENGTH = 1000  # characters; six times the longest gold answer of DeepMath-103K's sample
CACHE_SIZE = 1 << 16
GRACE = 10.0  # seconds after its limit when a worker ends by itself

_MARKS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_PERIOD = re.compile(r"(?<!\.)(?<!\\right)\.$")  # of a sentence, not of an ellipsis or an invisible delimiter
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_INTEGER = re.compile(r"[+-]?(\d{1,40}|\d{1,3}(,(\\!)?\d{3}){1,12})")
_SUM = re.compile(r"(?=.*\d[\s)]*([+*-]|\\times|\\cdot))([\d\s.,+*/()-]|\\times|\\cdot)+")


def extract_answer(text: str) -> str | None:
    """The text between the last complete pair of answer tags, without `\\boxed{}` and math delimiters; None without a pair.

    Exactly one pair counts, so naming several answers gains nothing: the last one is what the completion ends on, and
    tags that the reasoning merely mentions come before it.
    """
    for piece in reversed(text.split("<answer>")[1:]):
        answer, closing, _ = piece.partition("</answer>")
        if closing:
            return peel(answer)
    return None


def peel(answer: str) -> str:
    """An answer without what is wrapped around it: `\\boxed{}`, `$…$` and its kin, outer white space, a final period.

    Of prose around a box, only the box is left; several boxes are a list.
    """
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    while True:
        peeled = ", ".join(_boxed(answer)) or answer
        peeled = _undelimited(_PERIOD.sub("", peeled.strip()).strip())
        if peeled == answer:
            return answer
        answer = peeled


def _boxed(text: str) -> list[str]:
    """What the outermost `\\boxed{…}` hold, by counting braces; escaped ones do not count."""
    contents, depth, start = [], 0, 0
    for mark in _MARKS.finditer(text):
        if mark[0].startswith("\\boxed"):
            start = start if depth else mark.end()
            depth += 1
        elif depth and mark[0] == "{":
            depth += 1
        elif depth and mark[0] == "}":
            depth -= 1
            if not depth:
                contents.append(text[start : mark.start()])
    return contents


def _undelimited(text: str) -> str:
    """`$x$` as `x`, but `$x$ or $y$` as it is."""
    for left, right in _DELIMITERS:
        inner = text.removeprefix(left).removesuffix(right)
        if f"{left}{inner}{right}" == text and left not in inner and right not in inner:
            return inner
    return text


def quick_verdict(prediction: str, gold: str) -> bool | None:
    """The verdict on peeled answers that needs no computer algebra; None where it does.

    A sum, difference or product in place of a plain integer is wrong even where its value is right: `3+5-2` repeats the
    question `3+5-2`, and would earn the reward without an answer.
    """
    if prediction == gold:
        return True
    if len(prediction) > MAX_LENGTH:
        return False
    if _INTEGER.fullmatch(gold):
        if _INTEGER.fullmatch(prediction):
            return _integer(prediction) == _integer(gold)
        if _SUM.fullmatch(prediction.rpartition("=")[2]):
            return False
    return None


def _integer(text: str) -> int:
    return int(text.replace(",", "").replace("\\!", ""))


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
        self._pool: ProcessPool | None = None
        self._decide = lru_cache(CACHE_SIZE)(self._start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._decide.cache_clear()
        if self._pool:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def check(self, pairs: Sequence[tuple[str | None, str]]) -> list[Verdict]:
        """A verdict for each pair of an extracted answer, or None, and the gold answer, in their order."""
        pending = [self.submit(prediction, gold) for prediction, gold in pairs]
        return [verdict.result() for verdict in pending]

    def submit(self, prediction: str | None, gold: str) -> Future[Verdict]:
        """The same for one pair, without waiting."""
        return self._decide(prediction and peel(prediction), peel(gold))

    def _start(self, prediction: str | None, gold: str) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()
        if not prediction:
            verdict.set_result(Verdict(False, "no answer"))
        elif (quick := quick_verdict(prediction, gold)) is not None:
            verdict.set_result(Verdict(quick, "ok"))
        else:
            self._schedule(prediction, gold).add_done_callback(lambda done: self._settle(verdict, done))
        return verdict

    def _settle(self, verdict: Future[Verdict], check: Future[bool]) -> None:
        try:
            verdict.set_result(Verdict(check.result(), "ok"))
        except TimeoutError:
            self.timeouts += 1
            verdict.set_result(Verdict(False, "timeout"))
        except BrokenProcessPool as error:  # no fault of the answer: whoever waits for the verdict gets it
            verdict.set_exception(error)
        except Exception:  # the worker died or ran out of memory
            verdict.set_result(Verdict(False, "error"))

    def _schedule(self, prediction: str, gold: str) -> Future[bool]:
        from sspo_cli.rewards import equality  # loads sympy, which many runs never need

        if self._pool is None:
            # Forked from a small server that has loaded sympy: the parent has threads and torch, and a killed worker is
            # replaced in half a second.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([equality.__name__])
            self._pool = ProcessPool(self._workers, initializer=equality.prepare_worker, context=context)
        arguments = (prediction, gold, self._timeout + GRACE)
        return self._pool.schedule(equality.equal, arguments, timeout=self._timeout)
