"""GSM8K: grade-school word problems.

The gold answer follows `####` and may contain commas and a dollar sign, which are removed. The worked solution before `####`
becomes the demonstration.
"""

import re
from collections.abc import Iterator

from sspo_cli.errors import UserError
from sspo_cli.tasks.rows import PLAIN, Layout, Published, read_rows
from sspo_cli.types import Problem

PUBLISHED = Published(
    "openai/gsm8k", splits={"train": "train", "test": "test"}, columns=("question", "answer"), config="main"
)
CALCULATION = re.compile(r"<<.*?>>")  # calculator annotations of the data set, such as <<48/2=24>>


def problems(path: str | None, split: str, layout: Layout = PLAIN) -> Iterator[Problem]:
    """Load the rows. Raises UserError in the same cases as `read_rows`, and if a row has no gold answer."""
    column = layout.columns.get("answer", "answer")
    for row in read_rows(path, split, PUBLISHED, layout=layout):
        solution, mark, _ = row.text(column).rpartition("####")
        if not mark:
            raise UserError(f"{row.where} has no gold answer after `####`; for a file of bare answers use task `file`")
        gold = row.gold(column).lstrip("$").replace(",", "")
        thoughts = CALCULATION.sub("", solution).strip()
        demonstration = f"<think>\n{thoughts}\n</think>\n<answer>{gold}</answer>"
        identity = row.identity() or f"{split}-{row.number}"
        yield Problem(identity, row.question("question"), gold, "gsm8k", demonstration)
