"""The published data sets next to the project: the folder that holds them, and the tests that are skipped without them.

Each is a folder of JSON lines as its authors publish them: gsm8k/train.jsonl and test.jsonl (openai/gsm8k), math500/test.jsonl
(HuggingFaceH4/MATH-500), aime24/test.jsonl (HuggingFaceH4/aime_2024), aime25/test.jsonl (math-ai/aime25) and opencompass.jsonl
(opencompass/AIME2025), samples of deepmath (zwhe99/DeepMath-103K), dapo (BytedTsinghua-SIA/DAPO-Math-17k) and codeact
(xingyaoww/code-act), and outputs/, recorded completions with the verdicts of other graders. `datasets` writes such a file:

    load_dataset("openai/gsm8k", "main", split="test").to_json("gsm8k/test.jsonl")
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MISSING = re.compile(r"no shared data: (\S+)")  # the reason of every test that is skipped for lack of a file


def published(file: str, folder: Path = SHARED_DATA) -> Path:
    """Return the path of a published file, such as `gsm8k/test.jsonl`, or skip the test if it is missing."""
    if not (folder / file).exists():
        pytest.skip(f"no shared data: {file}")
    return folder / file


def skipped_line(skipped: Iterable[Any], folder: Path = SHARED_DATA) -> str | None:
    """Return a line with the missing files and the number of tests skipped for lack of them; None if there are none.

    skipped  pytest's reports of skipped tests
    """
    reasons = [str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)]
    missing = Counter(found[1] for reason in reasons if (found := MISSING.search(reason)))
    if not missing:
        return None
    tests = "1 test was" if missing.total() == 1 else f"{missing.total()} tests were"
    files = ", ".join(f"{file} ({count})" for file, count in sorted(missing.items()))
    return (
        f"{tests} skipped for lack of published data, which is not part of the project; missing in {folder}: {files}; "
        "tests/shared_data.py describes where they come from"
    )
