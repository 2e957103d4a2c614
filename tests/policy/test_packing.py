"""Prompts that are computed once per group give the same values and gradients as one prompt per completion."""

from pathlib import Path

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sspo_cli.config import LearningOptions, LoraOptions, ModelOptions
from sspo_cli.objectives import build_objective
from sspo_cli.policy.learner import accumulate_gradient, fill_old_logprobs, step_metrics
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.policy.packing import pack
from sspo_cli.policy.tiny import tiny_tokenizer

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 270, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def saved(model: PreTrainedModel, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def qwen3(tmp_path) -> str:
    """A Qwen3 model with two query heads per key head, and norms on queries and keys."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    return saved(Qwen3ForCausalLM(Qwen3Config(**SHAPE, **heads, initializer_range=0.1)), tmp_path / "qwen3")


def move(policy: Policy) -> None:
    with torch.no_grad():
        for index, parameter in enumerate(policy.parameters):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))


def learn(policy: Policy, batch, budget: int):
    """Return loss and gradient of a stale minibatch; the policy shares prompts only if its attention allows it."""
    policy.model.zero_grad()
    objective, options = build_objective(method="sspo"), LearningOptions(token_budget=budget)
    result = accumulate_gradient(
        policy, objective, batch, objective.factors(batch.mask.sum(1)), options, 0.7, on_policy=False
    )
    return step_metrics(batch, result)["policy/loss"], torch.cat(
        [parameter.grad.flatten() for parameter in policy.parameters]
    )


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"lora": LoraOptions(rank=4)}], ids=str)
def test_shared_prompts_give_the_loss_and_gradient_of_prompts_of_their_own(tiny, qwen3, make_batch, name, options):
    policy = load_policy(ModelOptions(name=qwen3 if name == "qwen3" else None, tiny=tiny, **options), CPU)
    batch = make_batch(prompts=5)
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], 10**6, 0.7)
    move(policy)
    assert policy.shares_prompts
    shared = {budget: learn(policy, batch, budget) for budget in (10**6, 100, 45, 1)}
    policy.model.set_attn_implementation("sdpa")
    assert not policy.shares_prompts
    loss, gradient = learn(policy, batch, 10**6)
    assert gradient.norm() > 0.01
    for shared_loss, shared_gradient in shared.values():
        assert shared_loss == pytest.approx(loss, rel=1e-5)
        assert (shared_gradient - gradient).norm() <= 2e-6 * gradient.norm()


def test_no_token_is_computed_twice_and_none_is_padding(policy, make_batch):
    batch = make_batch(prompts=6)
    seen = []
    policy.decoder.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    policy.logprobs(batch, 1.0)
    prompts = batch.prompt_lengths[::4].sum()
    assert [tuple(ids.shape) for ids in seen] == [(1, prompts + (batch.lengths - 1).sum())]


def test_micro_batches_of_groups_compute_few_prompts_twice(policy, make_batch):
    """A group is split only if its micro-batch is full, and each split computes one prompt twice."""
    batch = make_batch(prompts=30)
    micros = [micro for _, micro in batch.micro_batches(200, together=True)]
    assert len(micros) > 5
    prompts = sum(len(micro.groups.unique()) for micro in micros)
    assert 30 <= prompts <= 30 + len(micros) - 1


def test_the_token_before_each_completion_token_is_its_own(make_batch):
    batch = make_batch()
    packing = pack(batch, torch.float32)
    for row in range(len(batch)):
        start, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        before = packing.before[row, :length]
        assert torch.equal(packing.tokens[0, before], batch.tokens[row, start - 1 : start + length - 1])
        assert torch.equal(packing.positions[0, before], torch.arange(start - 1, start + length - 1))


def test_in_bfloat16_the_two_agree_as_far_as_it_goes(tiny, make_batch):
    policy = load_policy(ModelOptions(tiny=tiny, dtype="bfloat16"), CPU)
    batch = make_batch()
    shared, _ = policy.logprobs(batch, 1.0)
    shared.sum().backward()
    policy.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(shared, policy.logprobs(batch, 1.0)[0], atol=0.05, rtol=0.02)


def test_where_attention_is_not_sdpa_or_not_full_prompts_are_not_shared(tiny, make_batch, tmp_path):
    mistral = MistralForCausalLM(MistralConfig(**SHAPE, num_attention_heads=2, num_key_value_heads=2, sliding_window=4))
    eager = load_policy(ModelOptions(tiny=tiny, attention="eager"), CPU)
    sliding = load_policy(ModelOptions(name=saved(mistral, tmp_path)), CPU)
    sdpa = load_policy(ModelOptions(tiny=tiny), CPU)
    assert eager.model.config._attn_implementation == "eager"
    assert (eager.shares_prompts, sliding.shares_prompts, sdpa.shares_prompts) == (False, False, True)
    batch = make_batch()
    torch.testing.assert_close(eager.logprobs(batch, 1.0)[0], sdpa.logprobs(batch, 1.0)[0], atol=1e-5, rtol=1e-5)
    row = batch.tokens[:1, : int(batch.prompt_lengths[0] + batch.lengths[0])]
    logits = sliding.model(input_ids=row).logits[0, int(batch.prompt_lengths[0]) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, row[0, int(batch.prompt_lengths[0]) :, None])[:, 0]
    ours = sliding.logprobs(batch, 1.0)[0][0, : int(batch.lengths[0])]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [["full", "sliding"], ["sliding", "full"], ["sliding", "sliding"]], ids="-".join)
def test_a_model_with_any_layer_of_sliding_attention_shares_no_prompts(make_batch, tmp_path, layers):
    """The expected values are the model's own logits, row by row; the window of 4 is shorter than the prompts."""
    torch.manual_seed(0)
    windows = {"use_sliding_window": True, "sliding_window": 4, "layer_types": [f"{kind}_attention" for kind in layers]}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3}
    mixed = saved(Qwen2ForCausalLM(Qwen2Config(**SHAPE, **heads, **windows)), tmp_path)
    policy, batch = load_policy(ModelOptions(name=mixed), CPU), make_batch()
    assert not policy.shares_prompts
    ours = policy.logprobs(batch, 0.7)[0]
    for row in range(len(batch)):
        start, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        ids = batch.tokens[row, : start + length]
        logits = policy.model(input_ids=ids[None]).logits[0, start - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(1, ids[start:, None])[:, 0]
        torch.testing.assert_close(ours[row, :length], expected, atol=1e-4, rtol=1e-4)
