"""The ranks of a run: processes that share its work, each on another GPU. A process alone is a run's only rank.

Every rank holds the whole rollout batch and the same state of the run. Prompts, micro-batches, weights and moments are divided
among the ranks, and their results are combined before anything depends on them. Only the first rank writes the run's folder.

Functions that communicate must be called by all ranks, in the same order, on the main thread.
"""

from sspo_cli.ranks.exchange import add, anywhere, by_first, every, gather, on_first, total, waited
from sspo_cli.ranks.failures import LostRank, explained_loss, report, says_lost, words_of
from sspo_cli.ranks.joining import announce_folder, check_start, start, stop
from sspo_cli.ranks.place import is_first, rank, share, size, supposing

__all__ = [
    "LostRank",
    "add",
    "announce_folder",
    "anywhere",
    "by_first",
    "check_start",
    "every",
    "explained_loss",
    "gather",
    "is_first",
    "on_first",
    "rank",
    "report",
    "says_lost",
    "share",
    "size",
    "start",
    "stop",
    "supposing",
    "total",
    "waited",
    "words_of",
]
