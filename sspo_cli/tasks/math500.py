"""MATH-500: 500 problems of MATH's test split, with LaTeX answers."""

from collections.abc import Iterator

from sspo_cli.tasks.rows import PLAIN, Layout, Published, read_rows
from sspo_cli.types import Problem

PUBLISHED = Published("HuggingFaceH4/MATH-500", splits={"test": "test"}, columns=("problem", "answer", "unique_id"))


def problems(path: str | None, split: str, layout: Layout = PLAIN) -> Iterator[Problem]:
    """Load the rows. Raises UserError in the same cases as `read_rows`, and if a row has no question or no answer."""
    for row in read_rows(path, split, PUBLISHED, layout=layout):
        identity = row.identity("unique_id") or f"{split}-{row.number}"
        yield Problem(identity, row.question("problem"), row.gold("answer"), "math500")
