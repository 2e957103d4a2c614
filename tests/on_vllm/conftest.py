"""Fixtures for real vLLM on this machine's CPU; `make test-vllm` sets up an environment that has it."""

import gc
from collections.abc import Callable, Iterator

import pytest

from sspo_cli.config import VllmOptions
from sspo_cli.policy.model import Policy
from sspo_cli.rollout.vllm_engine import VllmEngine


@pytest.fixture
def start() -> Iterator[Callable[..., VllmEngine]]:
    """Return a function that starts an engine for a policy.

    The engine is deleted after the test, because a process holds only one at a time.
    """
    engines = []

    def start(policy: Policy, temperature: float = 1.0, **options: object) -> VllmEngine:
        engines.append(VllmEngine(policy, VllmOptions(kv_cache_gib=0.06, **options), 64, temperature))
        return engines[-1]

    yield start
    engines.clear()
    gc.collect()
