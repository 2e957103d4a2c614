"""vLLM's samples and log-probabilities agree with the policy's."""

import gc
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from vllm_cases import (
    PADDED,
    PROMPTS,
    TINY,
    differences,
    disturb,
    needs_vllm,
    sample,
    tiny_mixture,
    tiny_policy,
    unknown,
)

from sspo_cli.config import EpisodeOptions, TinyModelOptions, VllmOptions
from sspo_cli.environments.calculator import CalculatorEnvironment
from sspo_cli.environments.episode import EpisodeLimits
from sspo_cli.errors import UserError
from sspo_cli.policy.model import ModelOptions, load_policy
from sspo_cli.policy.pieces import token_pieces
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout import vllm_engine
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.episodes import Stage, play
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.rollout.vllm_engine import VllmEngine
from sspo_cli.tasks import load_problems

pytestmark = needs_vllm


@pytest.mark.parametrize(
    "make",
    [tiny_policy, partial(tiny_policy, tied=False), tiny_mixture],
    ids=["tied", "untied", "mixture-of-experts"],
)
def test_ten_updates_in_a_row_reach_the_engine_and_nothing_of_the_ones_before_stays(start, make):
    policy = make()
    engine = start(policy)
    engine.sync(policy)
    for update in range(10):
        disturb(policy, update)
        assert differences(policy, sample(engine)).mean() > 0.05  # the update has not arrived
        probed = engine.sync(policy)
        assert probed["sampler/probe_drift"] < 1e-4
        assert probed["sampler/probe_policy"] == pytest.approx(probed["sampler/probe_sampler"], abs=1e-4)
        assert differences(policy, sample(engine)).median() <= 1e-4


def test_with_the_same_weights_the_log_probabilities_agree_at_every_temperature(start):
    policy = tiny_policy()
    engine = start(policy)
    engine.sync(policy)
    for temperature in (1.0, 0.7):
        assert differences(policy, sample(engine, temperature=temperature), temperature).median() <= 1e-4


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_ids_that_the_tokenizer_does_not_know_are_sampled_alike_and_have_no_text(start, tied):
    policy = tiny_policy(tied=tied, vocabulary=PADDED)
    engine = start(policy)
    engine.sync(policy)
    disturb(policy, 0)
    engine.sync(policy)
    for which in (engine, TorchEngine(policy, 64)):
        groups = sample(which)
        assert differences(policy, groups).max() < 1e-3
        assert max(token for group in groups for c in group for token in c.token_ids) < PADDED
        completions = unknown(policy, groups)
        assert len(completions) > 5
        for c in completions:
            written = c.token_ids if c.truncated else c.token_ids[:-1]
            known = [token for token in written if token < len(policy.tokenizer)]
            assert c.text == policy.tokenizer.decode(known) == "".join(token_pieces(policy.tokenizer, written))
    after = [[2, PADDED - 1], [PADDED - 20]]
    assert differences(policy, sample(engine, after), prompts=after).max() < 1e-3


def test_adapters_are_merged_on_the_way_and_the_policy_is_unchanged(start):
    policy = tiny_policy(lora=True)
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    engine = start(policy)
    engine.sync(policy)
    assert differences(policy, sample(engine)).median() <= 1e-4
    with policy.model.disable_adapter():
        assert differences(policy, sample(engine)).mean() > 0.01  # the adapters change what is sampled
    assert all(torch.equal(before[name], weight) for name, weight in policy.model.named_parameters())


def test_weights_that_do_not_arrive_stop_the_run_with_one_sentence(start, monkeypatch):
    """Check the three ways in which a sync was seen to fail silently."""
    policy = tiny_policy()
    engine = start(policy)
    engine.sync(policy)
    disturb(policy, 0)
    monkeypatch.setattr(vllm_engine, "_pack_again", lambda model: None)
    with pytest.raises(UserError, match=r"log-probabilities differ from the policy's by .* rollout.engine=torch"):
        engine.sync(policy)
    monkeypatch.undo()
    engine.sync(policy)
    monkeypatch.setattr(type(engine.llm), "reset_prefix_cache", lambda llm: None)
    long = [PROMPTS[1] * 40]  # fills blocks of the cache
    sample(engine, long)
    disturb(policy, 1)
    engine.sync(policy)
    stale = sample(engine, long, temperature=0.0, group_size=1)
    monkeypatch.undo()
    engine.sync(policy)
    assert stale != sample(engine, long, temperature=0.0, group_size=1)
    disturb(policy, 2)
    monkeypatch.setattr(vllm_engine, "checkpoint_weights", lambda policy, dtype: iter(()))
    with pytest.raises(UserError, match="log-probabilities differ"):
        engine.sync(policy)


def test_a_seed_gives_the_same_completions_and_those_of_a_group_differ(start):
    policy = tiny_policy()
    engine = start(policy)
    engine.sync(policy)
    first = sample(engine)
    assert [len(group) for group in first] == [8, 8, 8]
    assert all(len({tuple(c.token_ids) for c in group}) == 8 for group in first)
    assert first == sample(engine)
    assert first != sample(engine, seed=2)
    same_prompt = sample(engine, prompts=[PROMPTS[0]] * 2)
    assert same_prompt[0] != same_prompt[1]


def test_more_prompt_tokens_than_vllm_takes_at_a_time(start):
    """vLLM takes 4096 prompt tokens at a time by default, and splits one of these prompts there."""
    policy = tiny_policy()
    engine = start(policy)
    engine.sync(policy)
    prompts = [[2, *range(10 + i, 210 + i)] for i in range(32)]
    groups = sample(engine, prompts=prompts, group_size=2, max_new_tokens=4)
    assert differences(policy, groups, prompts=prompts).median() <= 1e-4


def test_sampled_frequencies_are_the_policy_s_probabilities_untruncated(start):
    """Draw one token many times; the chi-square test covers tokens expected at least five times."""
    from scipy.stats import chisquare

    policy = tiny_policy()
    engine = start(policy)
    engine.sync(policy)
    draws = 4000
    (group,) = sample(engine, prompts=PROMPTS[:1], group_size=draws, max_new_tokens=1, temperature=0.8)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = (logits / 0.8).softmax(-1).double() * draws
    observed = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=len(expected)).double()
    often = expected >= 5
    observed = torch.cat([observed[often], observed[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    assert chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue > 1e-4


def test_completions_end_at_every_end_id_and_are_reported_as_soon_as_they_are_done(start):
    policy = tiny_policy()
    policy.model.generation_config.eos_token_id = list(range(4, 20))
    ends = set(policy.end_ids)
    engine = start(policy)
    engine.sync(policy)
    reported = []
    groups = engine.generate(Request(PROMPTS, 8, Sampling(1.0, 12, 1)), lambda *done: reported.append(done))
    expected = [(i, member, c) for i, group in enumerate(groups) for member, c in enumerate(group)]
    assert sorted(reported, key=lambda done: done[:2]) == expected
    completions = [c for group in groups for c in group]
    assert {c.truncated for c in completions} == {True, False}
    for c in completions:
        assert len(c.sampling_logprobs) == len(c.token_ids)
        assert not set(c.token_ids[:-1]) & ends
        assert c.truncated == (c.token_ids[-1] not in ends)
        assert c.text == policy.tokenizer.decode(c.token_ids if c.truncated else c.token_ids[:-1])


def test_greedy_completions_are_those_of_the_torch_engine(start):
    policy = tiny_policy()
    engine = start(policy)
    engine.sync(policy)
    ours, theirs = (
        [c.token_ids for (c,) in sample(which, group_size=1, temperature=0.0)]
        for which in (TorchEngine(policy, 8), engine)
    )
    assert ours == theirs


def test_the_process_is_left_as_it_was(start):
    policy = tiny_policy()
    environment, set_num_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    torch.set_float32_matmul_precision("high")  # the setting for bfloat16
    start(policy)
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")
    changed = {name for name in os.environ.keys() | environment.keys() if os.environ.get(name) != environment.get(name)}
    assert all(name.startswith("VLLM_") for name in changed)
    assert torch.set_num_threads is set_num_threads
    assert torch.get_num_threads() == threads


def test_on_a_gpu_the_engine_wakes_up_for_a_sync_and_sleeps_once_until_the_next(start, monkeypatch):
    """Check only the order of the calls, because vLLM ignores sleep on a CPU."""
    policy = tiny_policy()
    engine = start(policy)
    engine.on_gpu = True
    called = []
    for name in ("sleep", "wake_up", "collective_rpc", "reset_prefix_cache"):
        genuine = getattr(engine.llm, name)

        def record(*args, name=name, genuine=genuine, **kwargs):
            called.append((name, *kwargs.get("tags", [])))
            return genuine(*args, **kwargs)

        monkeypatch.setattr(engine.llm, name, record)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: called.append(("empty_cache",)))
    engine.sync(policy)
    engine.sleep()
    engine.sleep()
    engine.sync(policy)
    reload = [("collective_rpc",), ("reset_prefix_cache",)]
    awake = [("wake_up", "weights"), ("collective_rpc",), ("wake_up", "kv_cache"), ("reset_prefix_cache",)]
    assert called == [*reload, ("sleep",), ("empty_cache",), *awake]


def test_what_vllm_cannot_do_is_reported_in_one_sentence(start):
    narrow = load_policy(ModelOptions(tiny=TinyModelOptions(hidden_size=32, heads=2, layers=1)), torch.device("cpu"))
    with pytest.raises(
        UserError, match=r"heads have size 16, but on a CPU vLLM supports only 32, 64, .* set rollout.engine=torch"
    ):
        start(narrow)
    with pytest.raises(UserError, match=r"disables torch.compile, which model.kernels = compiled needs"):
        start(replace(tiny_policy(), compiled=True))
    with pytest.raises(UserError, match=r"could not start: .*memory.*options under rollout.vllm"):
        VllmEngine(tiny_policy(), VllmOptions(kv_cache_gib=1e6), 64, 1.0)


def test_a_cache_too_small_for_the_completions_is_reported_and_cuts_none():
    engine = VllmEngine(tiny_policy(), VllmOptions(kv_cache_gib=0.0005), 64, 1.0)
    with pytest.raises(UserError, match=r"room for sequences of 384 tokens, but 387 may be needed; raise .*gib"):
        sample(engine, prompts=[[2] * 3, [2] * 7], max_new_tokens=380)
    del engine
    gc.collect()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"),
            "too little memory .* lower rollout.vllm.gpu_memory",
        ),
        (
            RuntimeError("CUDA Error: out of memory at cumem_allocator.cpp:62"),  # from vLLM's allocator
            "too little memory .* lower rollout.vllm.gpu_memory",
        ),
        (RuntimeError("worker died\nat line 7"), "vLLM could not sample: worker died; .* rollout.engine=torch"),
    ],
)
def test_a_crash_in_the_middle_of_sampling_is_one_sentence_with_the_option_to_change(start, monkeypatch, error, said):
    engine = start(tiny_policy())

    def crash(engine):
        raise error

    monkeypatch.setattr(type(engine.llm.llm_engine), "step", crash)
    with pytest.raises(UserError, match=said):
        sample(engine)


STOP = ("</execute>", "</solution>")


def test_episodes_are_played_with_stop_strings_and_own_tokens_have_the_policy_s_log_probabilities(start):
    """Check stop strings that are single tokens, the tags of episodes, and then stop strings of several characters."""
    policy = load_policy(ModelOptions(tiny=TINY.model_copy(update={"action_tags": True})), torch.device("cpu"))
    tags = policy.tokenizer.convert_tokens_to_ids(
        ["<execute>", "</execute>", "<solution>", "</solution>", "<|im_end|>"]
    )
    with torch.no_grad():
        policy.head.weight[tags] *= 3
    engine = start(policy)
    engine.sync(policy)
    limits = EpisodeOptions(turns=3, proposals=1, max_tokens=80)
    with AnswerChecker(workers=1, timeout=30.0) as checker:
        environment = CalculatorEnvironment(checker, EpisodeLimits(limits.turns, limits.proposals))
        stage = Stage.of({"calculator": environment}, limits, policy)
        problems = load_problems("calculator", split="train", limit=6)
        prompts = [stage.render(problem, "plain", policy.tokenizer) for problem in problems]
        sampling = Sampling(temperature=1.0, max_new_tokens=12, seed=3)
        groups = play(engine, prompts, 6, sampling, stage)
        again = play(engine, prompts, 6, sampling, stage)
    episodes = [c for group in groups for c in group]
    assert [c.token_ids for c in episodes] == [c.token_ids for group in again for c in group]
    assert {turn.action for c in episodes for turn in c.episode.turns} >= {"call", "nothing"}
    texts = [turn.text for c in episodes for turn in c.episode.turns]
    stopped = [text for text in texts if any(string in text for string in STOP)]
    assert len(stopped) > 10
    assert all(text.endswith(STOP) for text in stopped)
    assert sum(sum(c.read) for c in episodes) > 0
    assert differences(policy, groups, prompts=[prompt.token_ids for prompt in prompts]).median() <= 1e-4

    for strings in (("7", "e"), ("ab", "</t")):  # strings that the torch engine finds too
        torch_engine = TorchEngine(policy, 64)
        for which in (engine, torch_engine):
            for completion in (c for group in sample(which, stop=strings, max_new_tokens=60) for c in group):
                text = completion.text
                found = [text.find(string) + len(string) for string in strings if string in text]
                # No token is cut: `user` is kept whole after its e.
                last = policy.tokenizer.decode(completion.token_ids[-1:])
                assert not found or len(text) - len(last) < min(found) <= len(text)
                assert completion.truncated == (not found and completion.token_ids[-1] not in policy.end_ids)
