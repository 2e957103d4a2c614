"""Composition of a reward: the weights of answer and format, and a user-defined function."""

import signal
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from numbers import Real

from pebble import ProcessExpired

from sspo_cli.errors import UserError, first_line, shorten
from sspo_cli.plugins import load_function
from sspo_cli.rewards.answer import AnswerChecker
from sspo_cli.types import Reward


@dataclass(frozen=True, slots=True)
class Scoring:
    """The weights of a reward's parts; the paper's are 1 and 1.

    answer    weight of r_answer
    format    weight of r_format
    function  user-defined reward as `module:function`, (text of a completion, gold answer) -> number, or None
    weight    weight of the function's value
    low       lowest value of the function; also its value if it times out or its worker process dies
    high      highest value of the function
    """

    answer: float = 1.0
    format: float = 1.0
    function: str | None = None
    weight: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @property
    def highest(self) -> float:
        """The largest reward that a completion can earn."""
        return self.answer + self.format + (self.weight * self.high if self.function else 0.0)

    def check(self) -> None:
        """Raise UserError if the user's function cannot be imported."""
        if self.function:
            load_function("reward", self.function, {})

    def complete(
        self, rewards: Sequence[Reward], texts: Sequence[str], golds: Sequence[str], checker: AnswerChecker
    ) -> list[Reward]:
        """Return the rewards with these weights and, if there is a user-defined function, its value for each text.

        The function runs in the worker processes that check answers and is killed at the same time limit. Raises UserError
        if the function raises an exception or returns anything except a number in its range.
        """
        if self.function is None:
            return [replace(reward, weights=(self.answer, self.format, 0.0)) for reward in rewards]
        arguments = [(self.function, text, gold, checker.limit) for text, gold in zip(texts, golds, strict=True)]
        pending = [checker.call(own_value, each) for each in arguments]
        values = [self._value(future, text) for future, text in zip(pending, texts, strict=True)]
        weights = self.answer, self.format, self.weight
        return [
            replace(reward, weights=weights, own=value, status=status if status != "ok" else reward.status)
            for reward, (value, status) in zip(rewards, values, strict=True)
        ]

    def _value(self, future: "Future[float | str]", text: str) -> tuple[float, str]:
        try:
            value = future.result()
        except TimeoutError:
            return self.low, "timeout"
        except ProcessExpired as error:
            return self.low, "timeout" if error.exitcode == -signal.SIGPROF else "error"
        place = f"for the completion {shorten(repr(text), 160)}"
        if isinstance(value, str):
            raise UserError(f"reward {self.function} fails {place}: {value}")
        if not self.low <= value <= self.high:  # also refuses NaN
            raise UserError(
                f"reward {self.function} gives {value:g} {place}, which is not in reward.range = [{self.low:g}, {self.high:g}]"
            )
        return value, "ok"


PAPER = Scoring()


def own_value(name: str, text: str, gold: str, limit: float) -> float | str:
    """Call the user's function in a worker process; return its value, or a text that explains the failure.

    limit  seconds of processor time after which the kernel kills this process; the time for importing the function's
           module, which may load a large library, is not included
    """
    try:
        function = load_function("reward", name, {})
        signal.setitimer(signal.ITIMER_PROF, limit)
        value = function(text, gold)
        return float(value) if isinstance(value, Real) else f"it returns {shorten(repr(value), 80)}, which is no number"
    except (Exception, SystemExit) as error:  # returned as text: the parent may be unable to unpickle the exception
        return f"{type(error).__name__}: {shorten(first_line(error), 200)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
