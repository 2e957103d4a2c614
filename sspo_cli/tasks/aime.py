"""AIME 2024 and 2025: thirty problems each, with answers from 000 to 999."""

from collections.abc import Iterator, Sequence

from sspo_cli.tasks.rows import PLAIN, Layout, Published, read_rows
from sspo_cli.types import Problem

COLUMNS = ("problem", "question", "answer", "id")
PUBLISHED_2024 = (
    Published("HuggingFaceH4/aime_2024", splits={"test": "train"}, columns=COLUMNS),
    Published("Maxwell-Jia/AIME_2024", splits={"test": "train"}, columns=COLUMNS),
)
PUBLISHED_2025 = (
    Published("math-ai/aime25", splits={"test": "test"}, columns=COLUMNS),
    Published("opencompass/AIME2025", splits={"test": "test"}, columns=COLUMNS, config="AIME2025-I"),
    Published("opencompass/AIME2025", splits={"test": "test"}, columns=COLUMNS, config="AIME2025-II"),
)


def problems_of_2024(path: str | None, split: str, layout: Layout = PLAIN) -> Iterator[Problem]:
    """Load the problems of 2024.

    Raises UserError in the same cases as `read_rows`, and if a row has no question or no answer.
    """
    return _problems(path, split, layout, PUBLISHED_2024, "aime24")


def problems_of_2025(path: str | None, split: str, layout: Layout = PLAIN) -> Iterator[Problem]:
    """Load the problems of 2025.

    Raises UserError in the same cases as `read_rows`, and if a row has no question or no answer.
    """
    return _problems(path, split, layout, PUBLISHED_2025, "aime25")


def _problems(
    path: str | None, split: str, layout: Layout, published: Sequence[Published], task: str
) -> Iterator[Problem]:
    for row in read_rows(path, split, *published, layout=layout):
        identity = row.identity("id") or str(row.number)
        yield Problem(identity, row.question("problem", "question"), row.gold("answer"), task)
