"""MATH-500: the benchmark's 500 problems of MATH's test split, with LaTeX answers."""

from collections.abc import Iterator

from sspo_cli.tasks.rows import Published, read_rows
from sspo_cli.types import Problem

PUBLISHED = Published("HuggingFaceH4/MATH-500", splits={"test": "test"}, columns=("problem", "answer", "unique_id"))


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Raises UserError as `read_rows` does, and for a row without question or answer."""
    for row in read_rows(path, split, PUBLISHED):
        identity = str(row.get("unique_id") or f"{split}-{row.number}")
        yield Problem(identity, row.text("problem"), row.text("answer"), "math500")
