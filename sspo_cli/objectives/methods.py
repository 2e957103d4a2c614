"""The table of methods: each has an aggregation, gates and a normalizer. To add a method, add one line."""

from typing import NamedTuple

from sspo_cli.objectives.aggregations import Aggregation, arithmetic, geometric, sequence
from sspo_cli.objectives.gates import GATES, SSPO_GATES


class Method(NamedTuple):
    """An aggregation, with its gates and its normalizer.

    gates       built-in gates that the method accepts; a method that accepts several also accepts user-defined gates
    default     gate if the user sets none; None: the user must set a gate
    normalizer  normalizer if the user sets none
    """

    aggregation: Aggregation
    gates: tuple[str, ...]
    default: str | None
    normalizer: str = "sequence"


METHODS: dict[str, Method] = {
    "grpo": Method(arithmetic, ("clip",), "clip"),  # eq. (2)
    "gspo": Method(sequence, ("clip",), "clip"),  # eq. (5)
    "gmpo": Method(geometric, ("clip",), "clip"),  # eq. (7)
    "sapo": Method(arithmetic, ("sigmoid",), "sigmoid"),  # eq. (8)
    "sspo": Method(geometric, tuple(SSPO_GATES), "atanlog"),  # eq. (11)
    "luspo": Method(sequence, ("clip",), "clip", "length"),  # arXiv 2602.05261
    "cispo": Method(arithmetic, ("cispo",), "cispo", "token"),  # arXiv 2506.13585
    "pspo": Method(arithmetic, ("pspo",), "pspo"),  # arXiv 2509.21282
    "cegppo": Method(arithmetic, ("cegppo",), "cegppo", "token"),  # arXiv 2509.20712
    # Each aggregation with any gate, including combinations that no publication has named.
    "arithmetic": Method(arithmetic, tuple(GATES), None),
    "geometric": Method(geometric, tuple(GATES), None),
    "sequence": Method(sequence, tuple(GATES), None),
}
DEFAULT_METHOD = "sspo"
