"""The user's own data set: rows with a question and an answer, in the layouts of published data sets.

`rows.QUESTIONS` and `rows.ANSWERS` list the columns that are tried; the task's option `columns` replaces them. The question
may be a chat with one user turn. Optional columns are an id and `demonstration`, a worked completion for the cold start.
"""

from collections.abc import Iterator

from sspo_cli.errors import UserError
from sspo_cli.tasks.rows import ANSWERS, IDS, PLAIN, QUESTIONS, Layout, Published, read_rows
from sspo_cli.types import Problem


def problems(path: str | None, split: str, layout: Layout = PLAIN) -> Iterator[Problem]:
    """Load the rows.

    Raises UserError in the same cases as `read_rows`, if there is no path, and if a row has no question or no answer.
    """
    if path is None:
        raise UserError("task `file` needs path=…: a data file, a folder of them, or the name of a data set on the hub")
    demonstration = layout.columns.get("demonstration", "demonstration")
    for row in read_rows(path, split, Published(path, splits={}, columns=()), layout=layout):
        yield Problem(
            id=row.identity(*IDS) or f"{split}-{row.number}",
            question=row.question(*QUESTIONS),
            answer=row.gold(*ANSWERS),
            task="file",
            demonstration=row.text(demonstration) if row.get(demonstration) else None,
        )
