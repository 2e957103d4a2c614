"""Tests of episodes of a random policy with the calculator.

The learner uses the tokens as they were sampled, and only the policy's own tokens count, under every split.
"""

import math
from dataclasses import replace

import pytest
import torch

from sspo_cli.config import EpisodeOptions, LearningOptions, ModelOptions, TinyModelOptions
from sspo_cli.environments.calculator import CalculatorEnvironment
from sspo_cli.environments.episode import EpisodeLimits
from sspo_cli.errors import UserError
from sspo_cli.objectives import build_objective
from sspo_cli.policy.batch import Batch, collate
from sspo_cli.policy.cold_start import demonstrations_of
from sspo_cli.policy.learner import accumulate_gradient, episode_metrics, fill_old_logprobs, reward_metrics
from sspo_cli.policy.model import Policy, load_policy
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.episodes import Stage, play
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.tasks import load_problems
from sspo_cli.types import Completion, Group

OPTIONS = EpisodeOptions(turns=3, proposals=1, max_tokens=80)
SAMPLING = Sampling(temperature=1.0, max_new_tokens=12, seed=3)
G = 6


def acting_policy(attention: str = "sdpa", scale: float = 2.0) -> Policy:
    """Return a random policy that prefers tags, so that its episodes run code, propose, and end in every way."""
    tiny = TinyModelOptions(hidden_size=32, layers=2, heads=2, intermediate_size=48, action_tags=True)
    policy = load_policy(ModelOptions(tiny=tiny, attention=attention), torch.device("cpu"))
    tags = policy.tokenizer.convert_tokens_to_ids(
        ["<execute>", "</execute>", "<solution>", "</solution>", "<|im_end|>"]
    )
    with torch.no_grad():
        for parameter in policy.parameters:
            if parameter.ndim >= 2:
                parameter.mul_(scale)
        policy.head.bias = torch.nn.Parameter(torch.zeros(policy.head.weight.shape[0]))
        policy.head.bias[tags] = 3.0
    return policy


@pytest.fixture(scope="module")
def checker():
    with AnswerChecker(workers=1, timeout=30.0) as checker:
        yield checker


@pytest.fixture(scope="module")
def policy() -> Policy:
    return acting_policy()


def stage_of(policy: Policy, checker: AnswerChecker, options: EpisodeOptions = OPTIONS) -> Stage:
    environment = CalculatorEnvironment(checker, EpisodeLimits(options.turns, options.proposals))
    return Stage.of({"calculator": environment}, options, policy)


@pytest.fixture(scope="module")
def stage(policy, checker) -> Stage:
    return stage_of(policy, checker)


@pytest.fixture(scope="module")
def prompts(policy, stage):
    problems = load_problems("calculator", split="train", limit=4)
    return [stage.render(problem, "plain", policy.tokenizer) for problem in problems]


@pytest.fixture(scope="module")
def groups(policy, stage, prompts) -> list[list[Completion]]:
    return play(TorchEngine(policy, 100), prompts, G, SAMPLING, stage)


def same(left, right) -> bool:
    """Report whether tokens, turns and outcomes are equal, and log-probabilities are equal up to rounding.

    The rounding depends on the rows of a batch.
    """
    pairs = [pair for groups in zip(left, right, strict=True) for pair in zip(*groups, strict=True)]
    near = all(a.sampling_logprobs == pytest.approx(b.sampling_logprobs, abs=1e-4) for a, b in pairs)
    return near and all(replace(a, sampling_logprobs=[]) == replace(b, sampling_logprobs=[]) for a, b in pairs)


def batch_of(prompts, groups) -> Batch:
    graded = [
        Group(prompt, group, [c.episode.reward for c in group]) for prompt, group in zip(prompts, groups, strict=True)
    ]
    advantages = torch.randn(len(groups), len(groups[0]), generator=torch.Generator().manual_seed(0))
    return collate(graded, advantages, mask_truncated=False)


def test_a_completion_is_its_turns_as_sampled_and_the_bridges_between_them(groups, stage):
    episodes = [c for group in groups for c in group]
    assert {c.episode.outcome.ended for c in episodes} >= {"turns", "proposals"}
    assert {turn.action for c in episodes for turn in c.episode.turns} == {"call", "proposal", "nothing"}
    for c in episodes:
        own, token = [[]], 0
        for token, read in zip(c.token_ids, c.read, strict=True):
            if read and own[-1]:
                own.append([])
            if not read:
                own[-1].append(token)
        turns = c.episode.turns
        assert len(own) == len(turns) == c.episode.outcome.turns
        assert not c.read[-1]
        built: list[int] = []
        for ids, turn in zip(own, turns, strict=True):
            written = ids[:-1] if ids[-1] in stage.dialogue.end_ids else ids
            assert stage.dialogue.tokenizer.decode(written) == turn.text
            built += ids + (stage.dialogue.bridge(ids, turn.answer) if turn.answer is not None else [])
        assert built == c.token_ids
        assert c.own_tokens == sum(map(len, own)) < len(c.token_ids) or len(turns) == 1
        assert all(logprob == 0.0 for logprob, read in zip(c.sampling_logprobs, c.read, strict=True) if read)


def test_the_policy_s_log_probabilities_of_own_tokens_are_the_sampler_s(policy, prompts, groups):
    batch = batch_of(prompts, groups)
    with torch.no_grad():
        logprobs, _ = policy.logprobs(batch, 1.0)
    torch.testing.assert_close(logprobs, batch.sampling_logprobs, atol=1e-4, rtol=1e-4)
    assert batch.mask.sum() == sum(c.own_tokens for group in groups for c in group)
    assert (batch.own_lengths == batch.mask.sum(dim=1)).all()


def test_draws_depend_on_the_prompt_s_place_alone(policy, stage, prompts, groups):
    engine = TorchEngine(policy, 100)
    assert same(play(TorchEngine(policy, 5), prompts, G, SAMPLING, stage), groups)
    assert same(play(engine, prompts[2:], G, replace(SAMPLING, first=2), stage), groups[2:])
    assert not same(play(engine, prompts, G, replace(SAMPLING, seed=4), stage), groups)
    assert len({tuple(c.token_ids) for c in groups[0]}) == G


def test_single_turns_and_episodes_in_one_rollout_do_not_disturb_each_other(policy, stage, prompts, groups):
    arithmetic = [
        stage.render(p, "plain", policy.tokenizer) for p in load_problems("arithmetic", split="train", limit=2)
    ]
    mixed = [prompts[0], arithmetic[0], prompts[2], arithmetic[1]]
    reported = {}
    played = play(TorchEngine(policy, 100), mixed, G, SAMPLING, stage, lambda p, m, c: reported.update({(p, m): c}))
    assert same([played[0], played[2]], [groups[0], groups[2]])
    seeds = [SAMPLING.seed_of(1), SAMPLING.seed_of(3)]
    alone = TorchEngine(policy, 100).generate(Request([p.token_ids for p in arithmetic], G, SAMPLING, seeds))
    assert same([played[1], played[3]], alone)
    stop = policy.tokenizer.convert_tokens_to_ids("</solution>")
    assert any(stop in c.token_ids[:-1] for group in alone for c in group)  # their stop strings do not end single turns
    assert reported == {(place, member): c for place, group in enumerate(played) for member, c in enumerate(group)}
    rewards = [[c.episode.reward if c.episode else groups[0][0].episode.reward for c in group] for group in played]
    collated = [Group(*parts) for parts in zip(mixed, played, rewards, strict=True)]
    batch = collate(collated, torch.zeros(4, G), mask_truncated=False)
    assert batch.outcomes[:, 1].isnan().tolist() == [False] * G + [True] * G + [False] * G + [True] * G


def test_an_episode_without_room_for_another_turn_is_truncated(policy, checker, prompts):
    options = EpisodeOptions(turns=9, proposals=9, max_tokens=40)
    groups = play(TorchEngine(policy, 100), prompts, G, SAMPLING, stage_of(policy, checker, options))
    ended = {c.episode.outcome.ended: c for group in groups for c in group}
    assert "tokens" in ended
    for group in groups:
        for c in group:
            assert len(c.token_ids) <= 40
            assert c.truncated == (c.episode.outcome.ended == "tokens")
            assert not c.read[-1]


def literal_gradient(policy: Policy, batch: Batch, method: str) -> torch.Tensor:
    """Compute eqs. (1), (2), (11) and (21) literally, row by row, without packing, padding or blocks of words."""
    policy.model.zero_grad()
    for row in range(len(batch)):
        prompt, length = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        ids = batch.tokens[row, : prompt + length]
        logits = policy.model(input_ids=ids[None]).logits[0, prompt - 1 : -1]
        own = batch.mask[row, :length]
        logprobs = logits.log_softmax(dim=-1)[torch.arange(length), ids[prompt:]][own]
        d, advantage = logprobs - batch.old_logprobs[row, :length][own], batch.advantages[row]
        if method == "sspo":
            tau = 0.2 if advantage > 0 else 0.3
            weight = (tau * torch.atan(d / tau)).mean().exp()
        else:
            ratio = d.exp()
            weight = (ratio.clamp(max=1.2) if advantage > 0 else ratio.clamp(min=0.8)).mean()
        (-weight * advantage / len(batch)).backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters])


@pytest.mark.parametrize("method", ["sspo", "grpo"])
def test_the_gradient_is_that_of_a_literal_computation_under_every_split(prompts, groups, method):
    policy, batch = acting_policy(scale=1.0), batch_of(prompts, groups)
    fill_old_logprobs(policy, batch, [torch.arange(len(batch))], 10**6, 1.0)
    # float32 keeps too few digits of a log-ratio near the temperature for the tolerance below.
    size = 0.03 if method == "sspo" else 0.15
    batch.old_logprobs.add_(size * torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1)))
    settings = {"tau_neg": 0.3, "tau_pos": 0.2} if method == "sspo" else {"eps_low": 0.2, "eps_high": 0.2}
    exact = acting_policy(scale=1.0)
    exact.model.double()
    expected = literal_gradient(exact, batch, method)
    assert expected.norm() > 0.05
    for budget in (10**6, 300, 1):
        policy.model.zero_grad()
        objective, options = build_objective(method=method, **settings), LearningOptions(token_budget=budget)
        factors = objective.factors(batch.mask.sum(dim=1))
        accumulate_gradient(policy, objective, batch, factors, options, 1.0, on_policy=False)
        gradient = torch.cat([parameter.grad.flatten() for parameter in policy.parameters])
        assert (gradient - expected).norm() <= 1e-6 * expected.norm()


def test_at_the_first_step_every_s_is_one_and_what_was_read_has_no_gradient(prompts, groups):
    policy, batch = acting_policy("eager"), batch_of(prompts, groups)  # eager: no packing, hidden states are [B, S]
    kept = []

    def keep(module, inputs, output):
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    hook = policy.decoder.register_forward_hook(keep)
    options = LearningOptions(token_budget=10**6)
    objective = build_objective(method="sspo")
    factors = objective.factors(batch.mask.sum(dim=1))
    result = accumulate_gradient(policy, objective, batch, factors, options, 1.0, on_policy=True)
    hook.remove()
    torch.testing.assert_close(result.objective, factors * batch.advantages, rtol=0, atol=0)
    ((rows, _),) = batch.micro_batches(10**6, policy.shares_prompts)
    (states,) = kept
    predicts = torch.zeros(states.shape[:2], dtype=torch.bool)  # states from which an own token was drawn
    for row, number in enumerate(rows.tolist()):
        start = int(batch.prompt_lengths[number]) - 1
        predicts[row, start : start + batch.mask.shape[1]] = batch.mask[number, : states.shape[1] - start]
    assert (states.grad[~predicts] == 0).all()
    assert (states.grad[predicts].abs().amax(dim=1) > 0).all()


def test_metrics_count_own_tokens_and_episodes(prompts, groups):
    batch = batch_of(prompts, groups)
    outcomes = [c.episode.outcome for group in groups for c in group]
    metrics = {**reward_metrics(batch, G), **episode_metrics(batch)}
    own = [c.own_tokens for group in groups for c in group]
    assert metrics["completions/length"] == pytest.approx(sum(own) / len(own))
    for name in ("turns", "proposals", "calls", "solved"):
        assert metrics[f"episodes/{name}"] == pytest.approx(sum(getattr(o, name) for o in outcomes) / len(outcomes))
    restored = Batch.from_state_dict(batch.state_dict())
    assert torch.equal(restored.outcomes, batch.outcomes)
    old = {k: v for k, v in batch.state_dict().items() if k not in ("own_lengths", "outcomes")}
    assert episode_metrics(Batch.from_state_dict(old)) == {}


def test_demonstrations_are_learnt_from_own_tokens_and_look_as_if_played(policy, stage):
    problem = load_problems("calculator", split="train", limit=1)[0]
    problem = replace(problem, episode=("<execute>6*7</execute>", "42", "well", "error", "<solution>42</solution>"))
    prompt = stage.render(problem, "plain", policy.tokenizer)
    (group,) = demonstrations_of([prompt], policy, stage.dialogue)
    completion = group.completions[0]
    assert policy.tokenizer.decode(completion.token_ids) == (
        "<execute>6*7</execute><|im_end|>\n<|im_start|>user\n42<|im_end|>\n<|im_start|>assistant\n"
        "well<|im_end|>\n<|im_start|>user\nerror<|im_end|>\n<|im_start|>assistant\n<solution>42</solution>"
    )
    own = [t for t, read in zip(completion.token_ids, completion.read, strict=True) if not read]
    assert policy.tokenizer.decode(own) == "<execute>6*7</execute>well<|im_end|><solution>42</solution>"
    assert demonstrations_of([prompt], policy, stage.dialogue, max_tokens=len(completion.token_ids) - 1) == []


def test_what_an_environment_holds_is_freed_if_it_fails(policy, checker, prompts):
    freed = []

    class Failing(CalculatorEnvironment):
        def _run(self, calls):
            raise UserError("lost")

        def close(self, episodes):
            freed.extend(episodes)

    environment = Failing(checker, EpisodeLimits(3, 2))
    stage = Stage.of({"calculator": environment}, OPTIONS, policy)
    with pytest.raises(UserError, match="lost"):
        play(TorchEngine(policy, 100), prompts, G, SAMPLING, stage)
    assert len(freed) == len(prompts) * G


def test_greedy_episodes_are_the_same_every_time(policy, stage, prompts):
    greedy = replace(SAMPLING, temperature=0.0)
    once = play(TorchEngine(policy, 100), prompts, 1, greedy, stage)
    assert same(once, play(TorchEngine(policy, 1), prompts, 1, replace(greedy, seed=9), stage))
    assert all(math.isfinite(x) for (c,) in once for x in c.sampling_logprobs)
