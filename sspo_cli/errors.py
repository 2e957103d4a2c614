"""The one exception that a user sees."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What the user gave cannot be used. The message is one sentence: what is wrong, where, and what to do instead."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of such a sentence, where `name` should have been one of `known`."""
    known = list(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; choose from {', '.join(known)}"
