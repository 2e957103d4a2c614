"""Fixture of the answer checker, which all reward tests share, because its worker takes seconds to start."""

from collections.abc import Iterator

import pytest

from sspo_cli.rewards import AnswerChecker


@pytest.fixture(scope="session")
def checker() -> Iterator[AnswerChecker]:
    with AnswerChecker(workers=1, timeout=20.0) as checker:
        yield checker
