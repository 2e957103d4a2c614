"""Session-wide fixtures: one sandbox for all tests, because its server takes seconds to start.

On a machine that cannot confine programs the tests are skipped; with CI=true they fail.
"""

import os
from collections.abc import Iterator

import pytest
from sandbox_cases import TIMEOUT

from sspo_cli.environments.sandbox import Sandbox, SandboxLimits
from sspo_cli.errors import UserError
from sspo_cli.rewards import AnswerChecker


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    # More run at a time than there are cores, because most of the long ones sleep or wait to be killed.
    sandbox = Sandbox(SandboxLimits(call_timeout=TIMEOUT, parallel=8, total_mib=3000))
    try:
        sandbox.__enter__()
    except UserError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must be able to confine programs: {error}")
        pytest.skip(str(error))
    yield sandbox
    sandbox.__exit__()


@pytest.fixture(scope="session")
def checker() -> Iterator[AnswerChecker]:
    with AnswerChecker(workers=1, timeout=30.0) as checker:
        yield checker
