"""Checks that all ranks do the same work: on another machine, files with the same names may have other contents."""

from collections.abc import Mapping, Sequence
from typing import Any

from sspo_cli.errors import UserError
from sspo_cli.ranks.exchange import gather
from sspo_cli.ranks.place import size

MOST_NAMED = 3  # differences in a message


def require_agreement(what: str, values: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError on all ranks if the values of one differ from those of the first rank. All ranks must call it.

    what    what a rank with other values has, such as "other options"
    values  short plain values by name; for a long one, a hash
    remedy  end of the message
    """
    if size() > 1:
        check_agreement(what, gather(lambda: [dict(values)]), remedy)


def check_agreement(what: str, of_ranks: Sequence[Mapping[str, Any]], remedy: str) -> None:
    """Raise UserError if the values of a rank differ from those of the first; see `require_agreement`."""
    first = of_ranks[0]
    for number, values in enumerate(of_ranks):
        names = [name for name in {**first, **values} if first.get(name) != values.get(name)]
        if names:
            listed = [f"{name}: {values.get(name)} instead of {first.get(name)}" for name in names[:MOST_NAMED]]
            more = ", …" if len(names) > MOST_NAMED else ""
            raise UserError(f"rank {number} has {what} than rank 0 ({', '.join(listed)}{more}); {remedy}")
