"""Start of the ranks of a command. Heavy imports are inside the function, so that `sspo --help` is fast."""

import os
import sys
from datetime import UTC, datetime

from sspo_cli.errors import command_line
from sspo_cli.launchers import is_rank


def start_ranks(nproc: int | None, device: str, is_training: bool = True) -> bool:
    """Start the ranks of `--nproc`, wait until they have ended, and return True. In a rank, join the others; return False."""
    from sspo_cli import ranks
    from sspo_cli.tracking.program import describe_source

    if is_rank(os.environ):
        ranks.start(device, describe_source())
        return False
    if not nproc or nproc == 1:
        return False
    from sspo_cli.run.failures import has_finished_since, record_failure
    from sspo_cli.supervisor import OF_TRAINING, Ends, FailedRanks, run_ranks

    again = f"finished work is saved; {command_line('sspo', *sys.argv[1:])} resumes it"
    ranks.check_start(nproc, device)  # printed here, so that it is printed once
    ends, began = OF_TRAINING if is_training else Ends(again, f"stopped; {again}"), datetime.now(UTC)
    try:
        run_ranks([sys.executable, "-m", "sspo_cli", *sys.argv[1:]], nproc, ends)
    except FailedRanks as error:
        # The first rank's own error at the end, such as a log that cannot be closed, stays one, as with a single process.
        if error.folder and error.first_code <= 0 and has_finished_since(error.folder, began):
            reason = str(error).removesuffix(f"; {ends.killed}")
            print(f"sspo: note: {reason}; the run had already finished and is complete", file=sys.stderr)
            return True
        if error.folder:
            record_failure(error.folder, str(error))
        raise
    return True
