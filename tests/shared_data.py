"""The large published data sets next to the project: where they are, and how many tests did without them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NO_SHARED_DATA = "no shared data"  # begins the reason of every test that is skipped for the lack of them


def skipped_line(skipped: Iterable[Any], folder: Path = SHARED_DATA) -> str | None:
    """What the end of a run says of tests that were skipped without the data; None if there were none.

    `skipped`: pytest's reports of skipped tests.
    """
    reasons = [str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)]
    count = sum(reason.removeprefix("Skipped: ").startswith(NO_SHARED_DATA) for reason in reasons)
    if not count:
        return None
    tests = "1 test was" if count == 1 else f"{count} tests were"
    return f"{tests} skipped for lack of the published data sets; they go into {folder}, a folder for each: gsm8k/test.jsonl, ..."
