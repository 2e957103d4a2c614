"""A report that is written and read back from its files."""

import csv
import json
from pathlib import Path
from typing import Any
from unittest import mock

from sspo_cli.report import page, write_report


class Report:
    """The files of a report without figures, which take most of the time of writing it."""

    def __init__(self, runs: Path, out: Path, **how: Any) -> None:
        with mock.patch.object(page, "figures", return_value=()):
            write_report([runs], out, **how)
        self.out = out
        self.text = (out / "report.md").read_text()

    def rows(self, table: str) -> list[dict[str, str]]:
        """Return the lines of a table's CSV file."""
        with (self.out / f"{table}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def trained(self, column: str = "arithmetic") -> dict[str, float]:
        """Return Pass@1 of the trained rows of table 1, by seeds."""
        rows = [row for row in self.rows("table1") if (row["kind"], row["column"]) == ("trained", column)]
        return {row["seeds"]: float(row["value"]) for row in rows}

    def notes(self, table: str) -> list[str]:
        return json.loads((self.out / f"{table}.json").read_text())["notes"]

    def verdict(self, quantity: str) -> str:
        """Return the part of the note on the noise of seeds that concerns one quantity.

        The part says how many differences of how many are beyond the noise, and lists them.
        """
        (note,) = (note for note in self.notes("table1") if "beyond the noise of seeds" in note)
        (part,) = (
            part for part in note.rstrip(".").rpartition("`seeds`): ")[2].split("; ") if part.startswith(quantity)
        )
        return part.removeprefix(f"{quantity}: ")
