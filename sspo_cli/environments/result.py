"""The result of running code. This module can be imported on any system."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """The output of a call, including notes of the sandbox, and how the call ended.

    text            the output, with notes
    status          "ok" (even if the program raised an exception), "timeout", "memory" or "crashed"
    seconds         wall time, without the time spent waiting for other interpreters
    variables_lost  the process ended, so the interpreter's next call starts without variables
    """

    text: str
    status: str
    seconds: float
    variables_lost: bool = False
