"""Mixtures of experts: the dtype in which they are computed."""

import copy

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations import moe

from sspo_cli.config import ModelOptions
from sspo_cli.policy.experts import expert_layers
from sspo_cli.policy.model import Policy, build_policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine

SHAPE = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}


def mixture() -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **HEADS, **EXPERTS, initializer_range=0.2))


def make_policy(dtype: torch.dtype, **options: object) -> Policy:
    return build_policy(mixture(), tiny_tokenizer(), ModelOptions(**options), torch.device("cpu"), dtype)


@pytest.fixture
def products(monkeypatch):
    """The dtypes of both factors of every grouped product."""
    seen, product = [], moe._grouped_mm

    def spy(inputs, weight, offs):
        seen.append((inputs.dtype, weight.dtype))
        return product(inputs, weight, offs)

    monkeypatch.setattr(moe, "_grouped_mm", lambda inputs, weight, offs: spy(inputs.to(weight.dtype), weight, offs))
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_experts_learn_and_sample_in_the_policy_s_dtype(products, make_batch, checkpointing):
    policy = make_policy(torch.bfloat16, gradient_checkpointing=checkpointing)
    products.clear()  # of the measurement of the logits' transform
    logprobs, _ = policy.logprobs(make_batch(), 1.0)
    logprobs.sum().backward()
    TorchEngine(policy, 8).generate(Request([[2, 10, 11]], 2, Sampling(1.0, 4, 1)))
    assert set(products) == {(torch.bfloat16, torch.bfloat16)}
    assert {parameter.grad.dtype for parameter in policy.parameters} == {torch.float32}
    assert not policy.notes


def literal(layer: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The experts of a layer token by token, every factor and every product in bfloat16, summed in float32."""
    rows = []
    for token, experts, shares in zip(hidden.bfloat16(), chosen.tolist(), weights, strict=True):
        parts = []
        for expert, share in zip(experts, shares, strict=True):
            gate, up = (layer.gate_up_proj[expert].bfloat16() @ token).chunk(2)
            product = layer.down_proj[expert].bfloat16() @ (nn.functional.silu(gate) * up)
            parts.append((product * share.bfloat16()).float())
        rows.append(torch.stack(parts).sum(dim=0))
    return torch.stack(rows)


def test_they_and_their_gradient_are_those_of_a_literal_computation_in_bfloat16():
    policy = make_policy(torch.bfloat16)
    ours = expert_layers(policy.model)[0]
    theirs, exact = copy.deepcopy(ours), copy.deepcopy(ours)
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(40, 32, generator=draw)
    chosen = torch.rand(40, 8, generator=draw).topk(2).indices
    weights = torch.rand(40, 2, generator=draw).bfloat16()
    direction = torch.randn(40, 32, generator=draw)

    def gradients(layer, compute):
        values = compute(layer, hidden, chosen, weights)
        (values * direction).sum().backward()
        return [values.detach(), layer.gate_up_proj.grad, layer.down_proj.grad]

    def forward(layer, *inputs):
        with policy.autocast(keep_copies=False):
            return layer(*inputs)

    in_bfloat16 = gradients(ours, forward)
    in_float32 = gradients(exact, lambda layer, *inputs: layer(*inputs))
    for mine, other, full in zip(in_bfloat16, gradients(theirs, literal), in_float32, strict=True):
        assert mine.dtype == torch.float32
        rounding = ((full - other).norm() / other.norm()).item()
        assert 1e-3 < rounding < 1e-2
        assert ((mine - other).norm() / other.norm()).item() < rounding / 2


def test_in_float32_they_are_those_of_transformers_to_the_bit(make_batch):
    policy, batch = make_policy(torch.float32), make_batch()
    ours, _ = policy.logprobs(batch, 1.0)
    policy.model.set_experts_implementation("grouped_mm")
    assert torch.equal(policy.logprobs(batch, 1.0)[0], ours)
