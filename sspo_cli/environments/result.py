"""The result of running code. This module can be imported on any system."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """The output of a call, including notes of the sandbox, and how the call ended.

    status   "ok" (even if the program raised an exception), "timeout", "memory" or "crashed"; after the last two, and after a
             timeout with `variables_lost`, the interpreter restarts without variables at its next call
    seconds  wall time, without the time spent waiting for other interpreters
    """

    text: str
    status: str
    seconds: float
    variables_lost: bool = False
