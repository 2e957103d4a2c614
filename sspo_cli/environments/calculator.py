"""The embedded environment: a calculator instead of a Python session. It is deterministic and needs no sandbox."""

import ast
import operator
from collections.abc import Callable, Sequence

from sspo_cli.environments.actions import CALL
from sspo_cli.environments.environment import ActingEnvironment
from sspo_cli.environments.episode import Episode, EpisodeLimits
from sspo_cli.environments.result import Result
from sspo_cli.rewards import AnswerChecker
from sspo_cli.types import Turn

LONGEST = 64  # maximum length of an expression in characters
LARGEST = 10**12  # largest absolute value of a number in an expression and of any result
_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
ERROR, WRONG = "error", "wrong"


class CalculatorEnvironment(ActingEnvironment):
    """An environment in which a call is an expression, which is answered by its value or by `error`."""

    def __init__(self, checker: AnswerChecker, limits: EpisodeLimits | None = None) -> None:
        super().__init__(checker, limits or EpisodeLimits(turns=4, proposals=1))

    def _run(self, calls: Sequence[tuple[Episode, str]]) -> list[Result]:
        return [Result(ERROR if (value := calculate(code)) is None else str(value), "ok", 0.0) for _, code in calls]

    def _answer(self, episode: Episode, turn: Turn, output: str) -> str:
        return output if turn.action == CALL else WRONG if turn.action != "nothing" else ERROR


def calculate(expression: str) -> int | None:
    """Evaluate integers, `+`, `-`, `*` and parentheses; return None for anything else and if a number gets too large."""
    expression = expression.strip()
    if len(expression) > LONGEST:
        return None
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # raised by the parser; ValueError for a null byte
        return None


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(value)) if type(value) is int:
            result = value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            result = _OPERATIONS[type(op)](_value(left), _value(right))
        case _:
            raise ValueError("no arithmetic")
    if abs(result) > LARGEST:
        raise ValueError("too large")
    return result
