"""Tests of mixtures of experts: the dtype of their computation, and the record of the experts that each token chooses."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.integrations import moe

from sspo_cli import ranks
from sspo_cli.config import LearningOptions, ModelOptions
from sspo_cli.objectives import build_objective
from sspo_cli.policy.batch import collate
from sspo_cli.policy.experts import expert_layers
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs, step_metrics
from sspo_cli.policy.model import Policy, build_policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.types import Group, Problem, Prompt, Reward

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
    """Record the dtypes of both factors of every grouped product."""
    seen, product = [], moe._grouped_mm

    def spy(inputs, weight, offs):
        seen.append((inputs.dtype, weight.dtype))
        return product(inputs, weight, offs)

    monkeypatch.setattr(moe, "_grouped_mm", lambda inputs, weight, offs: spy(inputs.to(weight.dtype), weight, offs))
    return seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_experts_learn_and_sample_in_the_policy_s_dtype(products, make_batch, checkpointing):
    policy = make_policy(torch.bfloat16, gradient_checkpointing=checkpointing)
    products.clear()  # forget the products that measured the logits' transform
    logprobs, _ = policy.logprobs(make_batch(), 1.0)
    logprobs.sum().backward()
    TorchEngine(policy, 8).generate(Request([[2, 10, 11]], 2, Sampling(1.0, 4, 1)))
    assert set(products) == {(torch.bfloat16, torch.bfloat16)}
    assert {parameter.grad.dtype for parameter in policy.parameters} == {torch.float32}
    assert not policy.notes


def literal(layer: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute a layer's experts token by token, every factor and every product in bfloat16, summed in float32."""
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


def step(policy, batch, options, on_policy=True):
    objective = build_objective(method="sspo", gate="atanlog", token_limit=64)
    factors = objective.factors(batch.mask.sum(dim=1))
    return accumulate_gradient(policy, objective, batch, factors, options, 1.0, on_policy)


def sampled_batch(policy, prompts):
    """Return a batch of three sampled completions per prompt."""
    groups = TorchEngine(policy, 4).generate(Request(prompts, 3, Sampling(1.0, 6, 1)))
    graded = [
        Group(Prompt(Problem("", "", "", ""), "", prompt), group, [Reward(0, 0, None, "ok")] * 3)
        for prompt, group in zip(prompts, groups, strict=True)
    ]
    advantages = torch.randn(len(prompts), 3, generator=torch.Generator().manual_seed(0))
    return collate(graded, advantages, mask_truncated=False)


PROMPTS = [[2, 10, 11], [2, 12, 13, 14, 15], [2, 17]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])  # sdpa shares prompts between rows, eager pads rows
def test_choices_of_experts_are_counted_where_a_token_is_predicted(attention):
    policy = make_policy(torch.float32, attention=attention, gradient_checkpointing=True)
    if attention == "eager":
        policy.model.set_attn_implementation("eager")
    batch = sampled_batch(policy, PROMPTS)
    chosen: list[torch.Tensor] = []
    for layer in policy.decoder.layers:
        layer.mlp.gate.register_forward_hook(lambda module, inputs, output: chosen.append(output[2]))
    expected = torch.zeros(2, 8)
    for row in range(len(batch)):
        start, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        chosen.clear()
        policy.decoder(input_ids=batch.tokens[row : row + 1, : start + length], use_cache=False)
        for number, experts in enumerate(chosen):
            expected[number] += torch.bincount(experts[start - 1 : -1].flatten(), minlength=8)
    result = step(policy, batch, LearningOptions(token_budget=40))
    assert torch.equal(result.expert_counts, expected)
    metrics = step_metrics(batch, result)
    assert metrics["policy/expert_load"] == pytest.approx(
        sum(8 * counts.max().item() / counts.sum().item() for counts in expected) / 2
    )
    assert metrics["sampler/rerouted_layers"] == metrics["sampler/rerouted_tokens"] == 0.0


def test_other_choices_than_the_sampler_s_are_counted_by_layer_and_by_token():
    policy = make_policy(torch.float32)
    batch = sampled_batch(policy, PROMPTS)
    tokens = int(batch.mask.sum())
    batch.routes[0, 0] += 1  # in both layers
    batch.routes[4, 1, 0] += 1
    options = LearningOptions(token_budget=40)
    on_policy = step_metrics(batch, step(policy, batch, options))
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], 40, 1.0)
    for metrics in (on_policy, step_metrics(batch, step(policy, batch, options, on_policy=False))):
        assert metrics["sampler/rerouted_layers"] == pytest.approx(3 / (2 * tokens))
        assert metrics["sampler/rerouted_tokens"] == pytest.approx(2 / tokens)
    unknown = replace(batch, routes=batch.routes[..., :0])
    assert not any("rerouted" in name for name in step_metrics(unknown, step(policy, unknown, options)))


def test_a_group_is_split_alike_in_every_epoch_and_on_any_number_of_ranks(make_batch, monkeypatch):
    batch = make_batch(prompts=5, group_size=6)
    numbered = replace(batch, rewards=torch.arange(len(batch)).float())

    def split(groups, size=1):
        rows = torch.cat([torch.arange(6 * group, 6 * group + 6) for group in groups])
        minibatch, shares = numbered.select(rows), []
        monkeypatch.setattr(ranks, "size", lambda: size)
        for rank in range(size):
            monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
            shares.append(
                [
                    tuple(micro.rewards.tolist() if len(picked) else ())
                    for picked, micro in minibatch.share(60, True, True)
                ]
            )
        assert len({len(share) for share in shares}) == 1
        return sorted(rows for share in shares for rows in share if rows)

    whole = split(range(5))
    assert any(len(rows) < 6 for rows in whole)  # a group has several micro-batches
    assert sorted(split([3, 0]) + split([1, 4, 2])) == whole
    assert split(range(5), size=2) == split(range(5), size=3) == whole


def test_later_epochs_of_an_unchanged_mixture_have_a_ratio_of_one_exactly(make_batch):
    policy, batch = make_policy(torch.bfloat16), make_batch(prompts=4, group_size=4)
    everything, half = torch.arange(16), torch.tensor([*range(4), *range(8, 12)])
    options = LearningOptions(token_budget=1000, epochs=2)
    fill_old_logprobs(policy, batch, [everything], 1000, 1.0, apart=True)
    assert not step(policy, batch.select(half), options, on_policy=False).log_ratio.any()
