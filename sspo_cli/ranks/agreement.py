"""Checks that all ranks do the same work: on another machine, files with the same names may have other contents."""

from collections.abc import Mapping
from typing import Any

from sspo_cli.ranks.exchange import gather
from sspo_cli.ranks.joining import check_agreement
from sspo_cli.ranks.place import size


def require_agreement(what: str, values: Mapping[str, Any], remedy: str) -> None:
    """Raise UserError on all ranks if the values of one differ from those of the first rank. All ranks must call it.

    what    what a rank with other values has, such as "other options"
    values  short plain values by name; for a long one, a hash
    remedy  end of the message
    """
    if size() > 1:
        check_agreement(what, gather(lambda: [dict(values)]), remedy)
