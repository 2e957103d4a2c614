"""What a sink may hear. A sink overrides what it cares for."""

from collections.abc import Mapping, Sequence
from typing import Any

from sspo_cli.tracking.run_folder import State

Metrics = Mapping[str, float | int]


class Sink:
    """Says nothing itself; see `Tracker` for when each method is called."""

    def start(self, total_steps: int, start_step: int) -> None: ...

    def begin_stage(self, name: str, total: int) -> None: ...

    def advance(self, amount: int, values: Mapping[str, float]) -> None: ...

    def end_stage(self) -> None: ...

    def log(self, step: int, metrics: Metrics) -> None: ...

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def evaluation(self, step: int, benchmark: str, summary: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def finish(self, state: State, reason: str | None) -> None: ...
