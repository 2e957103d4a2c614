"""Tests of the cold start: what it teaches, in which order, and when its result is reused."""

import copy
import os
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
import transformers
from filelock import FileLock

from sspo_cli.config import ColdStartOptions, ModelOptions, RunOptions, load_config
from sspo_cli.errors import UserError
from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.policy.cold_start import cold_start, demonstrations_of
from sspo_cli.policy.model import load_policy
from sspo_cli.tasks.prompts import render
from sspo_cli.types import Problem

CPU = torch.device("cpu")
TINY = {f"model.tiny.{name}": value for name, value in (("hidden_size", 32), ("layers", 2), ("heads", 1))}
ANSWERS = ("1", "<answer>22</answer>", "<think>3+3</think><answer>6</answer>", "12345", "ab c")


def options_of(**changes) -> RunOptions:
    """Return the options of a short cold start of the tiny model; `changes` have `__` in place of dots."""
    values = {"cold_start.steps": 3, "cold_start.batch_size": len(ANSWERS), **TINY}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(overrides=[f"{name}={value}" for name, value in values.items()])


def demonstrations(policy, answers=ANSWERS):
    problems = [Problem(str(i), "?" * (i + 1), "", "test", demonstration=answer) for i, answer in enumerate(answers)]
    return demonstrations_of([render(problem, "plain", policy.tokenizer) for problem in problems], policy)


def start(options, cache, policy, taught, interruption=None):
    """Run a cold start; return the policy, its folder, and the losses of the steps taken here."""
    losses = []

    def progress(steps, loss=None):
        if loss is not None:
            losses.append(loss)

    trained, folder = cold_start(
        policy, taught, options, cache, interruption or Interruption(), progress, lambda note: None
    )
    return trained, folder, losses


class TestDemonstrations:
    def test_they_complete_the_prompt_and_end_the_sequence(self, policy):
        for group, answer in zip(demonstrations(policy), ANSWERS, strict=True):
            ids = [*group.prompt.token_ids, *group.completions[0].token_ids]
            assert policy.tokenizer.decode(ids) == f"{group.prompt.text}{answer}<|im_end|>"
            assert ids.count(policy.tokenizer.eos_token_id) == 2  # the first one ends the question's turn

    def test_what_the_template_opened_is_not_written_twice(self, policy):
        policy.tokenizer.chat_template += "{% if add_generation_prompt %}<think>{% endif %}"
        (group,) = demonstrations(policy, ["<think>3+3</think><answer>6</answer>"])
        assert group.completions[0].text == "3+3</think><answer>6</answer>"
        ids = [*group.prompt.token_ids, *group.completions[0].token_ids]
        assert policy.tokenizer.decode(ids).endswith("assistant\n<think>3+3</think><answer>6</answer><|im_end|>")

    def test_problems_without_one_are_left_out(self, policy):
        problems = [Problem("a", "?", "", "test"), Problem("b", "?", "", "test", demonstration="1")]
        groups = demonstrations_of([render(problem, "plain", policy.tokenizer) for problem in problems], policy)
        assert [group.prompt.problem.id for group in groups] == ["b"]

    def test_without_any_the_cold_start_is_refused(self, policy, tmp_path):
        with pytest.raises(UserError, match="the tasks have no worked demonstrations"):
            start(options_of(), tmp_path, policy, [])
        assert not list(tmp_path.iterdir())


def plain_cold_start(policy, groups, options):
    """Train with plain torch on all demonstrations in every step; return the mean cross-entropy of their tokens at each step."""
    model, cold = policy.model, options.cold_start
    parameters = list(model.parameters())
    decayed = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": cold.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(decayed, betas=(0.9, 0.95))
    losses = []
    for step in range(cold.steps):
        nats = []
        for group in groups:
            prompt, answer = group.prompt.token_ids, torch.tensor(group.completions[0].token_ids)
            logits = model(input_ids=torch.tensor([[*prompt, *answer.tolist()]])).logits[0, len(prompt) - 1 : -1]
            nats.append(torch.nn.functional.cross_entropy(logits, answer, reduction="none"))
        loss = torch.cat(nats).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cold.max_grad_norm)
        for parameter_group in optimizer.param_groups:  # two steps of warm-up, then linearly to 0
            parameter_group["lr"] = cold.learning_rate * [0.5, 1.0, 1.0, 0.5][step]
        optimizer.step()
        losses.append(loss.item())
    return losses


CHANGES = {
    "cold_start__steps": 4,
    "cold_start__warmup_steps": 2,
    "cold_start__learning_rate": 1e-2,
    "cold_start__weight_decay": 0.1,
    "cold_start__max_grad_norm": 0.5,
}


@pytest.mark.parametrize("budget", [10**6, 60], ids=["whole", "several"])
def test_it_is_the_mean_over_all_tokens_of_the_batch_whatever_the_micro_batches(policy, tmp_path, budget):
    options = options_of(**CHANGES, learning__token_budget=budget)
    plain = copy.deepcopy(policy)
    expected = plain_cold_start(plain, demonstrations(policy), options)
    trained, _, losses = start(options, tmp_path, policy, demonstrations(policy))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    for ours, theirs in zip(trained.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def order_of(policy, cache, steps, **changes):
    """Return the number of the demonstration that each step learned from.

    The learning rate is nearly 0, so that each demonstration keeps its own loss and is recognized by it.
    """
    options = options_of(cold_start__steps=steps, cold_start__batch_size=1, cold_start__learning_rate=1e-12, **changes)
    taught, own = demonstrations(policy), []
    for group in taught:
        ids = torch.tensor([*group.prompt.token_ids, *group.completions[0].token_ids])
        first = len(group.prompt.token_ids)
        logits = policy.model(input_ids=ids[None]).logits[0, first - 1 : -1]
        own.append(torch.nn.functional.cross_entropy(logits, ids[first:]).item())
    _, _, losses = start(options, cache, policy, taught)
    order = [min(range(len(own)), key=lambda i: abs(own[i] - loss)) for loss in losses]
    assert losses == pytest.approx([own[i] for i in order], abs=1e-4)
    return order


def test_every_epoch_takes_each_demonstration_once_in_its_own_order(policy, tmp_path):
    order = order_of(policy, tmp_path, 15)
    epochs = [order[start : start + 5] for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order_of(policy, tmp_path, 5, cold_start__seed=1) != epochs[0]


def test_an_interrupted_one_continues_as_if_it_had_not_been(policy, tmp_path):
    """The resumed cold start uses the same demonstrations, moments and rates.

    A checkpoint is saved when it is due and when the run stops; only the latest is kept.
    """
    options = options_of(cold_start__steps=6, cold_start__batch_size=2, cold_start__checkpoint_every=2)
    taught, interruption = demonstrations(policy), Interruption()
    whole, _, expected = start(options, tmp_path / "whole", copy.deepcopy(policy), taught)
    losses, saved = [], []

    def progress(steps, loss=None):
        if loss is not None:
            losses.append(loss)
            interruption.requested = len(losses) == 3
            saved.append(sorted(path.name for path in (tmp_path / "parts").glob("*/step-*")))

    with pytest.raises(Interrupted):
        cold_start(copy.deepcopy(policy), taught, options, tmp_path / "parts", interruption, progress, print)
    resumed, folder = cold_start(
        copy.deepcopy(policy), taught, options, tmp_path / "parts", interruption, progress, print
    )
    assert losses == expected
    assert saved == [[], [], ["step-2"], ["step-3"], ["step-4"], ["step-4"]]
    assert [path.name for path in folder.parent.glob("step-*")] == ["step-6"]
    for ours, theirs in zip(resumed.parameters, whole.parameters, strict=True):
        assert torch.equal(ours, theirs)


# Options that change the result, next to those of `options_of`; each must have a separate cold start.
MATTER = {
    "cold_start.steps": 2,
    "cold_start.batch_size": 4,
    "cold_start.learning_rate": 1e-4,
    "cold_start.warmup_steps": 1,
    "cold_start.schedule": "cosine",
    "cold_start.weight_decay": 0.1,
    "cold_start.max_grad_norm": 2.0,
    "cold_start.seed": 1,
    "learning.token_budget": 50,
    "model.revision": "main",
    "model.dtype": "float32",
    "model.kernels": "compiled",
    "model.attention": "eager",
    "model.gradient_checkpointing": "true",
    "model.lora": "{rank: 4}",
    "model.tiny": "{seed: 1, hidden_size: 32, layers: 2, heads: 1}",
    "optimizer.eight_bit": "true",
}
# Options that do not change the result; runs that differ only in them begin with the same weights.
INDIFFERENT = {
    "cold_start.tasks": "[{name: gsm8k}]",
    "cold_start.checkpoint_every": 7,
    "seed": 1,
    "optimizer.learning_rate": 1e-5,
    "rollout.temperature": 0.5,
    "learning.mu": 4,
    "objective.method": "grpo",
}
IN_TESTS_OF_THEIR_OWN = {"model.name", "model.weights"}


class Stop(Exception):
    """Raised to end a cold start before its first step."""


def place_of(policy, options, cache, taught=None):
    """Return the folder of this cold start in the cache, without training."""

    def stop(steps, loss=None):
        raise Stop

    before = set(cache.iterdir())
    taught = demonstrations(policy) if taught is None else taught
    with pytest.raises(Stop):
        cold_start(policy, taught, options, cache, Interruption(), stop, print)
    (folder,) = set(cache.iterdir()) - before
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return folder


def test_every_option_that_matters_has_its_own_cold_start(policy, tmp_path):
    usual = place_of(policy, options_of(), tmp_path)
    assert place_of(policy, options_of(), tmp_path) == usual
    places = {name: place_of(policy, options_of(**{name: value}), tmp_path) for name, value in MATTER.items()}
    assert len({usual, *places.values()}) == 1 + len(MATTER), places
    for name, value in INDIFFERENT.items():
        assert place_of(policy, options_of(**{name: value}), tmp_path) == usual, name


def test_no_option_of_the_model_or_the_cold_start_is_in_neither_list():
    names = {f"model.{name}" for name in ModelOptions.model_fields}
    names |= {f"cold_start.{name}" for name in ColdStartOptions.model_fields}
    assert names <= MATTER.keys() | INDIFFERENT.keys() | IN_TESTS_OF_THEIR_OWN


def test_so_has_whatever_else_the_result_depends_on(policy, tmp_path, monkeypatch):
    options = options_of()
    places = [place_of(policy, options, tmp_path)]
    for answers in ([*ANSWERS[:4], "ab d"], ANSWERS[:4], ANSWERS[::-1]):
        places.append(place_of(policy, options, tmp_path, demonstrations(policy, answers)))
    other_questions = demonstrations_of(
        [render(Problem("", "!", "", "", demonstration=answer), "plain", policy.tokenizer) for answer in ANSWERS],
        policy,
    )
    places.append(place_of(policy, options, tmp_path, other_questions))
    # The same tokens, split differently into prompt and answer.
    group = demonstrations(policy)[0]
    ids, divided = [*group.prompt.token_ids, *group.completions[0].token_ids], []
    for cut in (len(group.prompt.token_ids), len(group.prompt.token_ids) + 1):
        prompt = replace(group.prompt, token_ids=ids[:cut])
        divided.append(replace(group, prompt=prompt, completions=[replace(group.completions[0], token_ids=ids[cut:])]))
    places += [place_of(policy, options, tmp_path, [group]) for group in divided]
    places.append(place_of(replace(policy, dtype=torch.bfloat16), options, tmp_path))
    for owner in (torch, transformers, sys.modules[cold_start.__module__]):
        with monkeypatch.context() as patch:
            patch.setattr(owner, "__version__", "0.0.1")
            places.append(place_of(policy, options, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        places.append(place_of(policy, options, tmp_path))
    assert len(set(places)) == len(places) == 12


def test_another_model_of_the_same_name_is_not_taken_for_the_one_before(policy, tmp_path):
    """The cold start is made again: a branch on a hub may have moved, or a folder may have been rewritten."""
    cache, model = tmp_path / "cache", tmp_path / "model"
    cache.mkdir()
    options = options_of(model__name=model)

    def place():
        return place_of(load_policy(options.model, CPU), options, cache)

    policy.save(model)
    places = [place(), place()]
    with torch.no_grad():
        policy.parameters[0][7, 3] += 1e-3
    policy.save(model)
    places.append(place())
    config = model / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    places.append(place())
    (model / "README.md").write_text("a new word")
    assert place() == places[3]
    assert places[0] == places[1]
    assert len(set(places)) == 3


def test_a_second_run_takes_the_weights_of_the_first_without_a_step(policy, tmp_path):
    fresh = copy.deepcopy(policy)
    trained, folder, losses = start(options_of(), tmp_path, policy, demonstrations(policy))
    assert len(losses) == 3
    assert folder == tmp_path / folder.parent.name / "step-3"
    again, same_folder, losses = start(options_of(), tmp_path, fresh, demonstrations(fresh))
    assert (same_folder, losses) == (folder, [])
    for ours, theirs in zip(again.parameters, trained.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_cold_starts_that_no_run_uses_any_more_are_removed_by_the_next(policy, tmp_path):
    def left(name: str, days: float, *checkpoint: str) -> None:
        folder = tmp_path / name
        (folder.joinpath(*checkpoint)).mkdir(parents=True)
        (folder / ".lock").touch()
        os.utime(folder, times=(time.time(), time.time() - days * 86_400))

    left("00000000000000a1", 31, "step-100")
    left("00000000000000a2", 29, "step-100")
    left("00000000000000b1", 2.1)
    left("00000000000000b2", 2.1, ".step-100.partial")
    left("00000000000000b3", 1.9)
    left("00000000000000c1", 31, "step-100")
    left("of-a-user", 400, "step-1")
    notes: list[str] = []
    fresh = copy.deepcopy(policy)
    with FileLock(tmp_path / "00000000000000c1" / ".lock"):
        os.utime(tmp_path / "00000000000000c1", times=(0, 0))
        taught = demonstrations(policy)
        _, made = cold_start(
            policy, taught, options_of(), tmp_path, Interruption(), lambda *_, **__: None, notes.append
        )
    kept = {"00000000000000a2", "00000000000000b3", "00000000000000c1", "of-a-user", made.parent.name}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert sorted(notes) == [
        f"removed {tmp_path / name}, a cold start that no run has used for {days} days"
        for name, days in (("00000000000000a1", 30), ("00000000000000b1", 2), ("00000000000000b2", 2))
    ]
    os.utime(made.parent, times=(0, 0))
    assert start(options_of(), tmp_path, fresh, taught)[2] == []  # it was used again, so its age starts from now
    assert time.time() - made.parent.stat().st_mtime < 3600


def test_bad_steps_in_a_row_end_it_and_single_ones_do_not(policy, tmp_path):
    options = options_of(cold_start__steps=6, optimizer__max_bad_steps=2)
    weight = policy.parameters[-1]
    good = weight.detach().clone()

    def cold_start_with_bad(steps_that_are_bad, cache):
        taken = []

        def progress(steps, loss=None):
            taken.append(loss)
            with torch.no_grad():  # takes effect in the next step
                weight.copy_(good * torch.nan if len(taken) in steps_that_are_bad else good)

        cold_start(policy, demonstrations(policy), options, cache, Interruption(), progress, print)

    cold_start_with_bad({1, 3, 5}, tmp_path / "single")
    with pytest.raises(
        UserError, match=r"not finite in 2 consecutive steps, at step 5; lower cold_start\.learning_rate"
    ):
        cold_start_with_bad({1, 4, 5}, tmp_path / "in a row")


def test_waiting_for_another_run_is_reported_and_can_be_interrupted(policy, tmp_path):
    options, notes, interruption = options_of(), [], Interruption()
    folder = place_of(policy, options, tmp_path)
    folder.mkdir()
    interruption.requested = True
    with FileLock(folder / ".lock"), pytest.raises(Interrupted):
        cold_start(policy, demonstrations(policy), options, tmp_path, interruption, print, notes.append)
    assert notes == [f"another run is computing the same cold start, {folder}; waiting for it"]
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_run_that_waited_long_enough_takes_what_is_there_then(policy, tmp_path):
    options, notes = options_of(), []
    folder = place_of(policy, options, tmp_path)
    folder.mkdir()
    busy = FileLock(folder / ".lock", thread_local=False)
    busy.acquire()
    release = threading.Timer(1.3, busy.release)  # longer than one attempt to get the lock
    release.start()
    cold_start(policy, demonstrations(policy), options, tmp_path, Interruption(), lambda *_, **__: None, notes.append)
    release.join()
    assert len(notes) == 1
    assert (folder / "step-3").is_dir()
