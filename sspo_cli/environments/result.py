"""What a call of code gives back. Any system."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """What a call printed, notes of the sandbox included, and how it ended.

    status   "ok" (exceptions of the program included), "timeout", "memory" or "crashed"; after the last two, and after a
             timeout whose `variables_lost` is true, the interpreter starts anew at its next call
    seconds  of wall time, without waiting for other interpreters
    """

    text: str
    status: str
    seconds: float
    variables_lost: bool = False
