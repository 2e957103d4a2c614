"""Real vLLM on this machine's CPU: `make test-vllm` sets up an environment that has it."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from sspo_cli.config import LoraOptions, ModelOptions, TinyModelOptions, VllmOptions
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.rollout import vllm_engine
from sspo_cli.rollout.vllm_engine import VllmEngine

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` runs these tests with it")

TINY = TinyModelOptions(hidden_size=64, layers=2, heads=2, intermediate_size=96)  # heads of 32: vLLM's narrowest on a CPU


def tiny_policy(*, tied: bool = True, dtype: str = "float32", lora: bool = False, scale: float = 2.0) -> Policy:
    """Random, its weights scaled up so that its distributions are far from uniform."""
    options = ModelOptions(tiny=TINY, dtype=dtype, lora=LoraOptions(rank=4) if lora else None)
    policy = load_policy(options, torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:  # they start at zero, and would change nothing
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
            elif parameter.ndim >= 2:
                parameter.mul_(scale)
        if not tied:
            policy.model.config.tie_word_embeddings = False
            policy.head.weight = torch.nn.Parameter(policy.head.weight.flip(0).contiguous())
    return policy


def disturb(policy: Policy, seed: int, size: float = 0.05) -> None:
    """What an optimizer step does: every weight that is trained moves."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)


@pytest.fixture
def start() -> Iterator[Callable[..., VllmEngine]]:
    """Starts an engine for a policy; it is gone after the test, since a process holds one at a time."""
    engines = []

    def start(policy: Policy, temperature: float = 1.0, **options: object) -> VllmEngine:
        engines.append(VllmEngine(policy, VllmOptions(kv_cache_gib=0.06, **options), 64, temperature))
        return engines[-1]

    yield start
    engines.clear()
    gc.collect()
