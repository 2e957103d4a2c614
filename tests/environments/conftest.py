"""One sandbox for all tests, because its server takes seconds to start.

With CI=true the tests fail, and are not skipped, on a machine that cannot confine programs.
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
    # More at a time than there are cores: most of those that run long sleep or wait to be killed.
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
