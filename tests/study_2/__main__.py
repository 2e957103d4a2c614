"""Run the second study, or continue it, up to a stage: `python -m tests.study_2 [STAGE]`; without a STAGE, to its end.

Trials run one at a time, each in a process that is forked from one with all imports done. Finished runs are added to
`runs/study-2` after every few trials and at the end; their folders are in `runs/study-2-runs`.
"""

import sys

from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted
from sspo_cli.sweep import run_sweep

from .fork import Fork
from .ledger import Ledger
from .plan import ROOT, STAGES, trials_of

RUNS = ROOT / "runs/study-2-runs"
KEPT = ROOT / "runs/study-2"
AT_A_TIME = 8  # trials between two records


def main(last: str | None) -> None:
    """Run the stages in order, up to the stage `last`."""
    ledger, results, place = Ledger(KEPT), {}, Fork()
    for name in STAGES:
        trials = trials_of(name, results, KEPT / "sweeps")
        ledger.record(name, trials, RUNS)
        while missing := ledger.missing(trials)[:AT_A_TIME]:
            try:
                run_sweep(missing, RUNS, place, retries=1)
            finally:
                ledger.record(name, missing, RUNS)
        rows = ledger.of_stage(name, trials)
        assert rows is not None
        results[name] = rows
        print(
            f"stage {name}: {len(rows)} runs, {sum(row.seconds['cpu'] for row in rows) / 3600:.2f} core-hours",
            flush=True,
        )
        if name == last:
            return


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
    except (UserError, Interrupted) as stop:
        sys.exit(f"study 2: {stop}")
