"""The one exception that a user sees, and what its sentences are made of."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Says that what the user gave cannot be used. The message is one sentence: what is wrong, where, and what to do instead."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of such a sentence if `name` should have been one of `known`."""
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__
