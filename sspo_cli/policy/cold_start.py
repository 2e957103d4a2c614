"""The cold start: a supervised stage before RL that teaches the format with worked demonstrations.

Its result is cached under a hash of everything that determines it, so that all runs with the same cold start begin with the
same weights, for any method and seed.
"""

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import torch
import transformers
import xxhash
from filelock import FileLock

from sspo_cli import __version__, ranks
from sspo_cli.config import RunOptions
from sspo_cli.errors import UserError, border, quantity
from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.locks import take_lock
from sspo_cli.policy.batch import collate
from sspo_cli.policy.checkpoint import (
    checkpoint_folders,
    keep_last,
    load_optimizer,
    load_state,
    save_checkpoint,
    set_damaged_aside,
)
from sspo_cli.policy.dialogue import Dialogue
from sspo_cli.policy.experts import complete_gradients
from sspo_cli.policy.model import Policy, check_ids, fingerprint, load_policy
from sspo_cli.policy.optimizer import adamw, guarded_step, scheduled_rate
from sspo_cli.seeds import derive_seed
from sspo_cli.types import Completion, Group, Prompt, Reward

BETAS = (0.9, 0.95)
KEPT = 30 * 86_400  # seconds after its last use until a cold start is deleted
KEPT_EMPTY = 2 * 86_400  # the same, for a cold start that has no checkpoint yet
KEY = re.compile(r"[0-9a-f]{16}")


def demonstrations_of(
    prompts: Sequence[Prompt], policy: Policy, dialogue: Dialogue | None = None, max_tokens: int | None = None
) -> list[Group]:
    """Make a group of one completion for each prompt with a worked answer or a worked episode.

    dialogue    frame of turns in the policy's chat template, for episodes
    max_tokens  longer episodes are left out

    Worked answers end with the end-of-sequence token. Raises UserError for tokens that the model does not have.
    """
    groups = []
    for prompt in prompts:
        problem = prompt.problem
        if problem.episode and dialogue:
            completion = _worked_episode(prompt, dialogue)
            if max_tokens is not None and len(completion.token_ids) > max_tokens:
                continue
        elif problem.demonstration is not None:
            text = problem.demonstration.removeprefix(prompt.opening)
            ids = [*policy.tokenizer.encode(text, add_special_tokens=False), policy.tokenizer.eos_token_id]
            completion = Completion(ids, [0.0] * len(ids), text, truncated=False)
        else:
            continue
        check_ids(completion.token_ids, policy, f"the demonstration of problem {problem.id} of {problem.task}")
        check_ids(prompt.token_ids, policy, f"the prompt of problem {problem.id} of {problem.task}")
        groups.append(Group(prompt, [completion], [Reward(0.0, 0.0, None, "ok")]))
    return groups


def check_demonstrations(demonstrations: Sequence[Group]) -> None:
    """Raise UserError if there are no demonstrations."""
    if not demonstrations:
        raise UserError(
            "the tasks have no worked demonstrations for the cold start; name other tasks in cold_start.tasks, such as a file of "
            "{question, answer, demonstration} rows, or set cold_start.steps=0"
        )


def _worked_episode(prompt: Prompt, dialogue: Dialogue) -> Completion:
    """Make the completion of a worked episode, whose turns and answers alternate; answers are marked as read."""
    ids: list[int] = []
    read: list[bool] = []
    turn: list[int] = []
    for place, text in enumerate(prompt.problem.episode):
        if place % 2:
            part = dialogue.bridge(turn, text)
        else:
            part = turn = dialogue.encode_turn(text, dialogue.opening if place else prompt.opening)
        ids += part
        read += [place % 2 == 1] * len(part)
    return Completion(ids, [0.0] * len(ids), "", truncated=False, read=read)


def cold_start(
    policy: Policy,
    demonstrations: Sequence[Group],
    options: RunOptions,
    cache: Path,
    interruption: Interruption,
    progress: Callable[..., None],
    note: Callable[[str], None],
) -> tuple[Policy, Path]:
    """Run the supervised stage; return the trained policy and the folder of its checkpoint.

    cache     folder that all cold starts share
    progress  called as progress(steps, loss=…) when steps are done; the loss is in nats per token
    note      called with a sentence if another run computes the same cold start, or if an old cold start is deleted

    An interrupted stage continues from its last checkpoint. Raises UserError if there are no
    demonstrations, and Interrupted if the user asks to stop.
    """
    check_demonstrations(demonstrations)
    folder = cache / _key(policy, demonstrations, options)
    ranks.on_first(lambda: _keep(cache, folder, note))
    with _lock(folder / ".lock", interruption, note):
        start, _ = ranks.on_first(lambda: set_damaged_aside(folder))
        done = int(start.name.removeprefix("step-")) if start else 0
        progress(done)
        if start:
            policy = load_policy(options.model, policy.device, start)
        if done < options.cold_start.steps:
            optimizer = adamw(policy.parameters, BETAS, options.cold_start.weight_decay, options.optimizer.eight_bit)
            if start:
                load_optimizer(start, load_state(start), policy, optimizer)
            _train(policy, optimizer, demonstrations, options, folder, done, interruption, progress)
    return policy, folder / f"step-{options.cold_start.steps}"


def _keep(cache: Path, folder: Path, note: Callable[[str], None]) -> None:
    """Create the folder of a cold start, or mark it as used. Remove cold starts that are no longer used."""
    with border(f"the cold start cannot be stored in {cache}"):
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # marks it as used
    _remove_unused(cache, note)


def _remove_unused(cache: Path, note: Callable[[str], None]) -> None:
    """Remove cold starts that no run has used for KEPT seconds; they can be computed again with identical results."""
    for folder in cache.iterdir():
        with suppress(OSError, UserError):  # the disk refuses, or another process removes the same folder
            kept = KEPT if checkpoint_folders(folder) else KEPT_EMPTY
            if not KEY.fullmatch(folder.name) or time.time() - folder.stat().st_mtime <= kept:
                continue
            lock = FileLock(folder / ".lock")
            if take_lock(lock):
                shutil.rmtree(folder)
                lock.release()
                note(f"removed {folder}, a cold start that no run has used for {kept // 86_400} days")


@contextmanager
def _lock(path: Path, interruption: Interruption, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a cold start. Another run may hold it for hours; waiting can be interrupted."""
    lock = FileLock(path)
    if not ranks.on_first(lambda: take_lock(lock)):
        note(f"another run is computing the same cold start, {path.parent}; waiting for it")
        while not ranks.on_first(lambda: take_lock(lock, timeout=1)):  # all ranks get the result of each try
            if ranks.anywhere(interruption.requested):
                raise Interrupted
    try:
        yield
    finally:
        lock.release()  # has no effect on the other ranks, which do not hold the lock


def _train(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    demonstrations: Sequence[Group],
    run_options: RunOptions,
    folder: Path,
    done: int,
    interruption: Interruption,
    progress: Callable[..., None],
) -> None:
    options = run_options.cold_start
    order = islice(_demonstration_order(len(demonstrations), options.seed), done * options.batch_size, None)
    bad_steps = 0
    for step in range(done, options.steps):
        chosen = list(islice(order, options.batch_size))
        batch = collate([demonstrations[i] for i in chosen], torch.zeros(len(chosen), 1), mask_truncated=False)
        loss = 0.0
        for _, micro in batch.share(run_options.learning.token_budget, policy.shares_prompts):
            logprobs, _ = policy.logprobs(micro.to(policy.device), temperature=1.0)
            micro_loss = -logprobs.sum() / batch.mask.sum()
            (micro_loss * ranks.size()).backward()  # fully_shard averages over the ranks; the factor makes it a sum
            loss += micro_loss.item()
        complete_gradients(policy.model)
        loss = ranks.total(loss)
        rate, rounding = scheduled_rate(options, step, options.steps), derive_seed(options.seed, "rounding", step)
        _, taken = guarded_step(optimizer, loss, rate, options.max_grad_norm, rounding)
        bad_steps = 0 if taken else bad_steps + 1
        if bad_steps >= run_options.optimizer.max_bad_steps:
            raise UserError(
                f"the cold start's loss or its gradient was not finite in {quantity(bad_steps, 'consecutive step')}, "
                f"at step {step + 1}; lower cold_start.learning_rate"
            )
        progress(1, loss=loss)
        stopping = ranks.anywhere(interruption.requested)
        if step + 1 == options.steps:
            save_checkpoint(folder / f"step-{step + 1}", policy, {})
        elif stopping or (step + 1) % options.checkpoint_every == 0:
            save_checkpoint(folder / f"step-{step + 1}", policy, {}, optimizer)
        ranks.on_first(lambda: keep_last(folder, 1))
        if stopping:
            raise Interrupted


def _demonstration_order(count: int, seed: int) -> Iterator[int]:
    """Yield indices of demonstrations without end, reshuffled every epoch."""
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(derive_seed(seed, "cold start", epoch))
        yield from torch.randperm(count, generator=generator).tolist()


def _key(policy: Policy, demonstrations: Sequence[Group], options: RunOptions) -> str:
    """Hash everything that determines the result: the tokens, the options, the model, the program, the number of ranks.

    The model is identified by its weights and its config, not by its name, because a branch on the hub can change.
    """
    cold = options.cold_start.model_dump(exclude={"tasks", "checkpoint_every"})
    model = [options.model.model_dump(), policy.model.config.to_json_string(), fingerprint(policy)]
    machine = [policy.device.type, str(policy.dtype), torch.get_num_threads(), options.learning.token_budget]
    if ranks.size() > 1:  # other partial sums are rounded differently, and hundreds of steps amplify that
        machine.append(ranks.size())
    program = [__version__, torch.__version__, transformers.__version__, *machine, options.optimizer.eight_bit]
    tokens = [
        [group.prompt.token_ids, completion.token_ids, *([list(completion.read)] if completion.read else [])]
        for group in demonstrations
        for completion in group.completions
    ]
    return xxhash.xxh3_64_hexdigest(json.dumps([program, cold, model, tokens]).encode())
