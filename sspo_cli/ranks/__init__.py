"""The ranks of a run: processes that share the work, each on its own GPU. A single process is the only rank of its run.

Every rank holds the whole rollout batch and the same state of the run. Prompts, micro-batches, weights and optimizer state
are divided among the ranks, and their results are combined before anything depends on them. Only the first rank
writes the run's folder.

Functions that communicate must be called by all ranks, in the same order, on the main thread.
"""

from sspo_cli.ranks.agreement import require_agreement
from sspo_cli.ranks.exchange import add, anywhere, by_first, every, gather, on_first, still_working, total, waited
from sspo_cli.ranks.failures import explained_loss, report_bug, says_lost, sentence_to_print
from sspo_cli.ranks.joining import announce_folder, check_device, check_start, start, stop
from sspo_cli.ranks.place import assuming_size, is_first, rank, share, size
from sspo_cli.ranks.reports import LostRank

__all__ = [
    "LostRank",
    "add",
    "announce_folder",
    "anywhere",
    "assuming_size",
    "by_first",
    "check_device",
    "check_start",
    "every",
    "explained_loss",
    "gather",
    "is_first",
    "on_first",
    "rank",
    "report_bug",
    "require_agreement",
    "says_lost",
    "sentence_to_print",
    "share",
    "size",
    "start",
    "still_working",
    "stop",
    "total",
    "waited",
]
