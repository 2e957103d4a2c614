"""Tiny policies with heads as wide as vLLM needs them on a CPU, and helpers to compare their sampler with them."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from sspo_cli.config import LoraOptions, ModelOptions, TinyModelOptions
from sspo_cli.policy.batch import collate
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.rollout.engine import Engine, Request, Sampling
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

needs_vllm = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is not installed here; `make test-vllm` runs these tests with it"
)
TINY = TinyModelOptions(hidden_size=64, layers=2, heads=2, intermediate_size=96)  # each head is 32 wide
PADDED = 300  # ids, 266 of them known to the tokenizer; not a multiple of 64, so vLLM pads them further
PROMPTS = [[2, 10, 11], [2, 12, 13, 14, 15, 16], [2, 17]]


def tiny_policy(
    *, tied: bool = True, dtype: str = "float32", lora: bool = False, scale: float = 2.0, vocabulary: int | None = None
) -> Policy:
    """Return a random policy whose weights are scaled up so that its distributions are far from uniform.

    `vocabulary` adds ids that the tokenizer does not know, as in Qwen2.5's models: 151,936 ids for 151,665 tokens.
    """
    options = ModelOptions(tiny=TINY, dtype=dtype, lora=LoraOptions(rank=4) if lora else None)
    policy = load_policy(options, torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    if vocabulary:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            policy.model.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:  # these start at zero and would change nothing
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
            elif parameter.ndim >= 2:
                parameter.mul_(scale)
        if not tied:
            policy.model.config.tie_word_embeddings = False
            policy.head.weight = torch.nn.Parameter(policy.head.weight.flip(0).contiguous())
    return policy


def tiny_mixture() -> Policy:
    """Return a random mixture of experts like Qwen3-30B-A3B: with query and key norms and an untied projection."""
    policy = tiny_policy()
    shape = {"vocab_size": policy.vocabulary, "hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    config = Qwen3MoeConfig(**shape, **heads, num_experts=8, num_experts_per_tok=2, initializer_range=0.12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return replace(policy, model=Qwen3MoeForCausalLM(config).eval())


def disturb(policy: Policy, seed: int, size: float = 0.05) -> None:
    """Move every trained weight, as an optimizer step does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=draw) * size)


def sample(
    engine: Engine, prompts: list[list[int]] = PROMPTS, group_size: int = 8, **options
) -> list[list[Completion]]:
    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": 24, "seed": 1, **options})
    return engine.generate(Request(prompts, group_size, sampling))


def unknown(policy: Policy, groups: list[list[Completion]]) -> list[Completion]:
    """Return the completions with an id that the tokenizer does not know."""
    return [c for group in groups for c in group if max(c.token_ids) >= len(policy.tokenizer)]


def differences(
    policy: Policy, groups: list[list[Completion]], temperature: float = 1.0, prompts: list[list[int]] = PROMPTS
) -> torch.Tensor:
    """Return |log-probability by the policy − by the sampler| of every sampled token."""
    graded = [
        Group(Prompt(Problem("", "", "", ""), "", prompt), group, [Reward(0, 0, None, "ok")] * len(group))
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    batch = collate(graded, torch.zeros(len(groups), len(groups[0])), mask_truncated=False)
    with torch.no_grad():
        logprobs, _ = policy.logprobs(batch, temperature)
    return (logprobs - batch.sampling_logprobs).abs()[batch.mask]
