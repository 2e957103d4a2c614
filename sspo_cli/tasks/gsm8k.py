"""GSM8K: grade-school word problems. The gold answer stands behind `####`, with commas and signs, after a worked solution
that serves as a demonstration."""

import re
from collections.abc import Iterator

from sspo_cli.errors import UserError
from sspo_cli.tasks.rows import Published, read_rows
from sspo_cli.types import Problem

PUBLISHED = Published(
    "openai/gsm8k", splits={"train": "train", "test": "test"}, columns=("question", "answer"), config="main"
)
CALCULATION = re.compile(r"<<.*?>>")  # the data set's marks for a calculator, such as <<48/2=24>>


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Raises UserError as `read_rows` does, and for a row without a gold answer."""
    for row in read_rows(path, split, PUBLISHED):
        solution, mark, gold = row.text("answer").rpartition("####")
        gold = gold.strip().lstrip("$").replace(",", "")
        if not (mark and gold):
            raise UserError(f"{row.where} has no gold answer behind `####`; a file of bare answers is task `file`")
        thoughts = CALCULATION.sub("", solution).strip()
        demonstration = f"<think>\n{thoughts}\n</think>\n<answer>{gold}</answer>"
        yield Problem(f"{split}-{row.number}", row.text("question"), gold, "gsm8k", demonstration)
