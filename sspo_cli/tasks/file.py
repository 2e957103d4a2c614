"""A data set of the user's own: rows with a question and an answer.

The question is in `question`, `problem` or `prompt`, the answer in `answer` or `final_answer`. Optional: `id` or
`unique_id`, and `demonstration`, a worked completion for the cold start.
"""

from collections.abc import Iterator

from sspo_cli.errors import UserError
from sspo_cli.tasks.rows import Published, read_rows
from sspo_cli.types import Problem


def problems(path: str | None, split: str) -> Iterator[Problem]:
    """Raises UserError without a path, as `read_rows` does, and for a row without question or answer."""
    if path is None:
        raise UserError("task `file` needs path=…, a .jsonl, .json or .parquet file or a folder of them")
    for row in read_rows(path, split, Published(path, splits={}, columns=())):
        given = [value for name in ("id", "unique_id") if (value := row.get(name)) is not None]
        yield Problem(
            id=str(given[0] if given else f"{split}-{row.number}"),
            question=row.text("question", "problem", "prompt"),
            answer=row.text("answer", "final_answer"),
            task="file",
            demonstration=row.text("demonstration") if row.get("demonstration") else None,
        )
