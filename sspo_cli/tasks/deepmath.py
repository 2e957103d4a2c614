"""DeepMath-103K: hard problems; a third of the answers are plain integers, the others LaTeX, Yes/No and letters."""

from collections.abc import Iterator

from sspo_cli.tasks.rows import PLAIN, Layout, Published, read_rows
from sspo_cli.types import Problem

PUBLISHED = Published("zwhe99/DeepMath-103K", splits={"train": "train"}, columns=("question", "final_answer"))


def problems(path: str | None, split: str, layout: Layout = PLAIN) -> Iterator[Problem]:
    """Load the rows. Raises UserError in the same cases as `read_rows`, and if a row has no question or no answer."""
    for row in read_rows(path, split, PUBLISHED, layout=layout):
        identity = row.identity() or f"{split}-{row.number}"
        yield Problem(identity, row.question("question"), row.gold("final_answer"), "deepmath")
