"""AIME 2024 and 2025: thirty problems each, with answers from 000 to 999."""

from collections.abc import Iterator

from sspo_cli.tasks.rows import Published, read_rows
from sspo_cli.types import Problem

COLUMNS = ("problem", "question", "answer", "id")
PUBLISHED_2024 = Published("HuggingFaceH4/aime_2024", splits={"test": "train"}, columns=COLUMNS)
PUBLISHED_2025 = Published("math-ai/aime25", splits={"test": "test"}, columns=COLUMNS)


def problems_of_2024(path: str | None, split: str) -> Iterator[Problem]:
    """Raises UserError as `read_rows` does, and for a row without question or answer."""
    return _problems(path, split, PUBLISHED_2024, "aime24")


def problems_of_2025(path: str | None, split: str) -> Iterator[Problem]:
    """Raises UserError as `read_rows` does, and for a row without question or answer."""
    return _problems(path, split, PUBLISHED_2025, "aime25")


def _problems(path: str | None, split: str, published: Published, task: str) -> Iterator[Problem]:
    for row in read_rows(path, split, published):
        identity = row.get("id")
        yield Problem(
            str(row.number if identity is None else identity), row.text("problem", "question"), row.text("answer"), task
        )
