"""The large published data sets next to the project: where they are, and how many tests did without them.

Each is a folder of JSON lines as its authors publish them: gsm8k/train.jsonl and test.jsonl (openai/gsm8k), math500/test.jsonl
(HuggingFaceH4/MATH-500), aime24/test.jsonl (HuggingFaceH4/aime_2024), aime25/test.jsonl (math-ai/aime25) and opencompass.jsonl
(opencompass/AIME2025), samples of deepmath (zwhe99/DeepMath-103K), dapo (BytedTsinghua-SIA/DAPO-Math-17k) and codeact
(xingyaoww/code-act), and outputs/, recorded completions with the verdicts of other graders. `datasets` writes such a file:

    load_dataset("openai/gsm8k", "main", split="test").to_json("gsm8k/test.jsonl")
"""

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
    return (
        f"{tests} skipped for lack of the published data sets, which are not part of the project; they go into {folder}, a "
        "folder of JSON lines for each, such as gsm8k/test.jsonl; tests/shared_data.py says which and where they come from"
    )
