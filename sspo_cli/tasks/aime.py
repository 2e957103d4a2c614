"""AIME 2024 and 2025: thirty problems each, with answers from 000 to 999."""

from collections.abc import Iterator, Sequence

from sspo_cli.tasks.rows import Published, read_rows
from sspo_cli.types import Problem

COLUMNS = ("problem", "question", "Problem", "answer", "Answer", "id", "ID")
PUBLISHED_2024 = (
    Published("HuggingFaceH4/aime_2024", splits={"test": "train"}, columns=COLUMNS),
    Published("Maxwell-Jia/AIME_2024", splits={"test": "train"}, columns=COLUMNS),
)
PUBLISHED_2025 = (
    Published("math-ai/aime25", splits={"test": "test"}, columns=COLUMNS),
    Published("opencompass/AIME2025", splits={"test": "test"}, columns=COLUMNS, config="AIME2025-I"),
    Published("opencompass/AIME2025", splits={"test": "test"}, columns=COLUMNS, config="AIME2025-II"),
)


def problems_of_2024(path: str | None, split: str) -> Iterator[Problem]:
    """Raises UserError as `read_rows` does, and for a row without question or answer."""
    return _problems(path, split, PUBLISHED_2024, "aime24")


def problems_of_2025(path: str | None, split: str) -> Iterator[Problem]:
    """Raises UserError as `read_rows` does, and for a row without question or answer."""
    return _problems(path, split, PUBLISHED_2025, "aime25")


def _problems(path: str | None, split: str, published: Sequence[Published], task: str) -> Iterator[Problem]:
    for row in read_rows(path, split, *published):
        given = [value for name in ("id", "ID") if (value := row.get(name)) is not None]
        question, answer = row.text("problem", "question", "Problem"), row.text("answer", "Answer")
        yield Problem(str(given[0] if given else row.number), question, answer, task)
