"""Tests of the torch engine against the policy that it samples from."""

import pytest
import torch
from transformers import GPT2LMHeadModel, Qwen2ForCausalLM

from sspo_cli.config import ModelOptions
from sspo_cli.policy.batch import collate
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.rollout import torch_engine
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.types import Group, Problem, Prompt, Reward

PROMPTS = [[2, 10, 11], [2, 12, 13, 14, 15, 16], [2, 17]]


def sample(policy, prompts=PROMPTS, group_size=4, max_rows=100, **options):
    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": 12, "seed": 1, **options})
    return TorchEngine(policy, max_rows).generate(Request(prompts, group_size, sampling))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sampling_logprobs_are_those_of_the_policy_at_the_temperature(policy, temperature):
    """Prefill, cache, left padding and rows that leave the batch do not change the log-probabilities."""
    policy.model.generation_config.eos_token_id = list(range(4, 20))  # rows end at different steps
    groups = sample(policy, temperature=temperature)
    assert len({len(c.token_ids) for group in groups for c in group}) > 2
    batch = collate(
        [
            Group(Prompt(Problem("", "", "", ""), "", prompt), group, [Reward(0, 0, None, "ok")] * 4)
            for prompt, group in zip(PROMPTS, groups, strict=True)
        ],
        torch.zeros(3, 4),
        mask_truncated=False,
    )
    logprobs, _ = policy.logprobs(batch, temperature)
    torch.testing.assert_close(logprobs, batch.sampling_logprobs, atol=1e-4, rtol=1e-4)


def test_every_end_id_ends_a_completion_and_only_those_at_the_limit_are_truncated(policy):
    policy.model.generation_config.eos_token_id = [20, 21]
    ends = {20, 21, policy.tokenizer.eos_token_id}
    assert set(policy.end_ids) == ends
    with torch.no_grad():  # both end ids are then sampled often
        policy.head.weight[[20, 21]] = policy.head.weight[[20, 21]] * 0 + 0.5
    completions = [c for group in sample(policy, group_size=64, max_new_tokens=20) for c in group]
    assert {c.token_ids[-1] for c in completions} >= {20, 21}
    for c in completions:
        assert not set(c.token_ids[:-1]) & ends
        assert c.truncated == (c.token_ids[-1] not in ends)
        assert len(c.token_ids) == 20 or not c.truncated
        assert len(c.sampling_logprobs) == len(c.token_ids)
        written = c.token_ids if c.truncated else c.token_ids[:-1]
        assert c.text == policy.tokenizer.decode(written)


def test_greedy_completions_are_those_of_generate(policy):
    for prompt, (completion,) in zip(PROMPTS, sample(policy, group_size=1, temperature=0.0), strict=True):
        expected = policy.model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=policy.end_ids, pad_token_id=0
        )
        assert completion.token_ids == expected[0, len(prompt) :].tolist()


def test_the_same_seed_gives_the_same_completions_and_another_one_others(policy):
    first = [c.token_ids for group in sample(policy) for c in group]
    assert first == [c.token_ids for group in sample(policy) for c in group]
    assert first != [c.token_ids for group in sample(policy, seed=2) for c in group]
    assert len({tuple(ids) for ids in first[:4]}) > 1  # the completions of a group differ


def test_sampled_frequencies_are_the_policy_s_probabilities(policy):
    """A chi-square test compares many draws of one step; tokens that are expected less than five times are counted together."""
    from scipy.stats import chisquare

    draws = 4000
    (group,) = sample(policy, prompts=PROMPTS[:1], group_size=draws, max_rows=draws, max_new_tokens=1, temperature=0.8)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = (logits / 0.8).softmax(-1).double() * draws
    observed = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=len(expected)).double()
    often = expected >= 5
    observed = torch.cat([observed[often], observed[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    assert chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue > 1e-4


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [
        (1.0, None, {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}),
        (1.0, 2, {1: 4 / 7, 3: 3 / 7}),
        (0.65, None, {1: 4 / 7, 3: 3 / 7}),
        (0.75, None, {1: 4 / 9, 3: 3 / 9, 2: 2 / 9}),
        (0.5, 2, {1: 1.0}),  # top_k leaves two words, and the first has 4/7 of their probability
        (0.01, None, {1: 1.0}),
        (1.0, 9, {0: 0.1, 1: 0.4, 2: 0.2, 3: 0.3}),
    ],
)
def test_truncated_sampling_draws_from_the_most_probable_words_alone(top_p, top_k, kept):
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(4000, -1)
    uniform = torch.rand(len(logits), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen, logprobs = torch_engine._sample(logits, 1.0, uniform, top_p, top_k)
    shares = {word: float((chosen == word).float().mean()) for word in set(chosen.tolist())}
    assert shares == pytest.approx(kept, abs=0.03)
    torch.testing.assert_close(logprobs.exp(), torch.tensor([kept[word] for word in chosen.tolist()]))


def test_words_without_probability_are_never_drawn_and_the_others_as_often_as_they_should():
    """The words lie in blocks that are full, half empty, and cut by the end of the vocabulary.

    They are few, so that each is drawn.
    """
    from scipy.stats import chisquare

    logits = torch.full((20_000, 3 * torch_engine.BLOCK + 5), -torch.inf)
    words = torch.tensor([0, 1, 63, 130, 190, 191, 192, 196])
    logits[:, words] = torch.tensor([0.1, 2.0, 1.0, 0.5, -1.0, 1.5, 0.3, 1.2])
    uniform = torch.rand(len(logits), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen, logprobs = torch_engine._sample(logits, 1.0, uniform)
    observed = torch.bincount(chosen, minlength=logits.shape[1])
    expected = logits[0].double().softmax(0) * len(logits)
    assert observed.sum() == observed[words].sum()
    assert chisquare(observed[words], expected[words]).pvalue > 1e-3
    torch.testing.assert_close(logprobs, logits[0].log_softmax(0)[chosen])


def test_more_prompts_than_fit_at_a_time_come_back_in_order(policy):
    together = sample(policy, temperature=0.0, group_size=1)
    apart = sample(policy, temperature=0.0, group_size=1, max_rows=1)
    assert [c.token_ids for group in together for c in group] == [c.token_ids for group in apart for c in group]


@pytest.mark.parametrize(("max_rows", "at_a_time"), [(12, 12), (11, 8), (4, 4), (1, 4)])
def test_no_more_rows_than_allowed_are_sampled_at_a_time_but_a_whole_group(policy, max_rows, at_a_time):
    rows = []
    policy.decoder.register_forward_hook(
        lambda module, inputs, options, output: rows.append(len(options["input_ids"])), with_kwargs=True
    )
    sample(policy, max_rows=max_rows)
    assert max(rows) == at_a_time


def test_after_a_sync_the_engine_samples_from_that_policy(policy, tiny):
    untouched = load_policy(ModelOptions(tiny=tiny), torch.device("cpu"))
    sampling = Sampling(temperature=1.0, max_new_tokens=12, seed=1)
    engine = TorchEngine(untouched, 100)
    before = engine.generate(Request(PROMPTS, 4, sampling))
    assert engine.sync(policy) == {}
    assert engine.generate(Request(PROMPTS, 4, sampling)) == sample(policy) != before


def test_a_prompt_s_completions_depend_on_its_place_and_not_on_what_is_sampled_with_it(policy):
    """`max_rows`, the number of calls and the other prompts do not matter, also beyond the first block of draws."""
    policy.model.generation_config.eos_token_id = list(range(4, 6))
    prompts = [[2, 10 + i] for i in range(8)]
    tokens = torch_engine.STEPS + 16

    def ids(groups):
        return [c.token_ids for group in groups for c in group]

    expected = ids(sample(policy, prompts, max_new_tokens=tokens))
    assert len({tuple(completion) for completion in expected}) == len(expected)
    for max_rows in (1, 8, 12):
        assert ids(sample(policy, prompts, max_rows=max_rows, max_new_tokens=tokens)) == expected
    halves = [sample(policy, prompts[at : at + 4], first=at, max_new_tokens=tokens) for at in (0, 4)]
    assert ids(halves[0]) + ids(halves[1]) == expected
    others = [[2, 80, 81, 82]] * 7
    assert ids(sample(policy, [*others, prompts[7]], max_new_tokens=tokens))[-4:] == expected[-4:]


def test_equal_prompts_of_one_batch_are_drawn_independently(policy):
    first, second = sample(policy, [[2, 10, 11]] * 2)
    assert [c.token_ids for c in first] != [c.token_ids for c in second]


def test_completions_are_reported_when_they_end_while_others_continue(policy):
    """Each completion is reported once, with the index of its prompt, also if several chunks of prompts are sampled in turn."""
    policy.model.generation_config.eos_token_id = list(range(4, 60))
    steps, reported = [], []
    policy.decoder.register_forward_hook(lambda *_: steps.append(None))
    sampling = Sampling(temperature=1.0, max_new_tokens=12, seed=1)
    groups = TorchEngine(policy, 8).generate(
        Request(PROMPTS, 4, sampling), lambda i, m, c: reported.append((i, m, c, len(steps)))
    )
    for index, group in enumerate(groups):
        assert {m: id(c) for i, m, c, _ in reported if i == index} == {m: id(c) for m, c in enumerate(group)}
    first_chunk = [(c, at) for i, _, c, at in reported if i < 2]
    assert all(at == len(c.token_ids) for c, at in first_chunk)
    assert len({at for _, at in first_chunk}) > 2


def test_finished_rows_leave_the_batch_and_the_cache_has_room_for_whole_blocks(policy):
    policy.model.generation_config.eos_token_id = list(range(4, 12))
    shapes = []
    policy.decoder.register_forward_hook(
        lambda module, inputs, options, output: shapes.append(
            (len(options["input_ids"]), *(room.shape[2] for room in options["past_key_values"].layers[0]._buffers))
        ),
        with_kwargs=True,
    )
    completions = [c for group in sample(policy, group_size=32, max_new_tokens=150) for c in group]
    sampled, rows = sum(len(c.token_ids) for c in completions), [rows for rows, *_ in shapes[1:]]
    assert sorted(rows, reverse=True) == rows
    assert sampled <= len(PROMPTS) * 32 + sum(rows) <= 1.25 * sampled
    assert max(room for _, *rooms in shapes for room in rooms) <= 150 + 6 + torch_engine.GROWTH
    assert len({rooms[0] for _, *rooms in shapes}) < len(shapes)


def test_in_bfloat16_sampler_and_policy_agree_and_the_weights_stay_float32(tiny):
    exact = load_policy(ModelOptions(tiny=tiny), torch.device("cpu"))
    policy = load_policy(ModelOptions(tiny=tiny, dtype="bfloat16"), torch.device("cpu"))
    assert {parameter.dtype for parameter in policy.parameters} == {torch.float32}
    dtypes = set()  # dtypes of the cache
    hook = policy.decoder.register_forward_hook(
        lambda module, inputs, options, output: dtypes.update(
            x.dtype for layer in options["past_key_values"].layers for x in (layer.keys, layer.values)
        ),
        with_kwargs=True,
    )
    (group,) = sample(policy, prompts=PROMPTS[1:2])
    hook.remove()
    batch = collate(
        [Group(Prompt(Problem("", "", "", ""), "", PROMPTS[1]), group, [Reward(0, 0, None, "ok")] * 4)],
        torch.zeros(1, 4),
        mask_truncated=False,
    )
    logprobs, _ = policy.logprobs(batch, 1.0)
    assert dtypes == {torch.bfloat16}
    assert logprobs.dtype == torch.float32
    assert (logprobs - batch.sampling_logprobs).abs().max() < 0.1
    assert 0 < (logprobs - exact.logprobs(batch, 1.0)[0]).abs().max() < 0.2
    logprobs.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in policy.parameters)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_samples_in_evaluation_mode_and_is_left_in_the_mode_that_it_had(policy, training):
    """Gradient checkpointing needs training mode in the next learning phase.

    The mode is also restored if a callback fails.
    """
    modes = []
    policy.decoder.register_forward_hook(lambda module, *_: modes.append(module.training))
    policy.model.train(training)
    sample(policy)
    assert set(modes) == {False}
    assert {module.training for module in policy.model.modules()} == {training}

    def fail(index, member, completion):
        raise KeyError

    with pytest.raises(KeyError):
        TorchEngine(policy, 100).generate(Request(PROMPTS, 4, Sampling(1.0, 4, seed=1)), fail)
    assert {module.training for module in policy.model.modules()} == {training}


SHAPE = {"vocab_size": 270, "initializer_range": 0.3}
QWEN2 = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, **SHAPE}
SLIDING = {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 4}
MODELS = {
    "full and sliding": (
        Qwen2ForCausalLM,
        {**SLIDING, **QWEN2, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "sliding and full": (
        Qwen2ForCausalLM,
        {**SLIDING, **QWEN2, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "learned positions": (GPT2LMHeadModel, {"n_embd": 32, "n_layer": 2, "n_head": 2, **SHAPE}),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_kinds_of_models_sample_from_themselves(tmp_path, name):
    """The sampler agrees with the model's own logits of each completion, computed without cache and padding.

    The models have a window of 4 tokens, or positions that are not relative.
    """
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    kind(kind.config_class(**shape)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(ModelOptions(name=str(tmp_path)), torch.device("cpu"))
    policy.model.generation_config.eos_token_id = list(range(4, 40))  # rows leave at different steps
    groups = sample(policy)
    assert len({len(c.token_ids) for group in groups for c in group}) > 2
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.sampling_logprobs), expected, atol=1e-4, rtol=1e-4)
