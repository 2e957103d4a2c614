"""Comparison of the policy's and the sampler's log-probabilities with a reference: the literal computation by the model.

The literal computation is a forward pass of a single sequence to full logits, without padding or cache. Its rounding error
is measured. Differences of more than `MULTIPLE` times the rounding error are reported, and so is NaN.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sspo_cli.policy.batch import Batch, collate
from sspo_cli.policy.model import Policy
from sspo_cli.rollout.engine import Request, Sampling
from sspo_cli.rollout.torch_engine import TorchEngine
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

MULTIPLE = 16.0  # largest allowed difference between two computations, in multiples of the rounding error
CACHES = ("past_key_values", "cache_params", "state")  # names of the cache argument in different models
GRADIENTS = 1e-3  # largest allowed relative difference of gradients in float32; correct models have about 1e-5


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and a completion, as token ids."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference from the literal computation.

    text        clause for an error message
    of_sampler  True if only the sampler is wrong
    """

    text: str
    of_sampler: bool = False


def literal(policy: Policy, row: Row, copies: int = 1, hook: Callable[..., Any] | None = None) -> Tensor:
    """Compute the log-probabilities [T] of a row's completion by the literal computation, with the LM head in float32.

    copies  number of copies of the row in the batch; the result is that of the first copy
    hook    forward hook of the embeddings (see `torch.nn.Module.register_forward_hook`)
    """
    model, ids = policy.model, torch.tensor([row.prompt + row.completion] * copies, device=policy.device)
    with ExitStack() as stack:
        stack.enter_context(policy.evaluating())
        stack.enter_context(policy.autocast())
        stack.enter_context(policy.uncompiled())
        stack.callback(policy.head.register_forward_hook(_in_float32).remove)
        if hook:
            stack.callback(model.get_input_embeddings().register_forward_hook(hook).remove)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, ids[0, len(row.prompt) :, None])[:, 0]


def rounding(policy: Policy, rows: Sequence[Row], exact: Sequence[Tensor]) -> float:
    """Measure the rounding error of log-probabilities: the largest change if the embeddings are perturbed.

    exact  literal log-probabilities of the rows, without perturbation

    Each embedding is changed by at most its rounding error, and two copies of each row are computed in a batch. Different rows
    are not computed in the same batch, because a dependence between different rows is an error that `compare` must find.
    """
    generator = torch.Generator().manual_seed(0)
    epsilon = torch.finfo(policy.dtype).eps

    def perturb(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        noise = torch.rand(output.shape, generator=generator).to(output.device) * 2 - 1
        return output + output * (noise * epsilon).to(output.dtype)

    with torch.no_grad():
        moved = [literal(policy, row, copies=2, hook=perturb) for row in rows]
    return _distance(exact, moved) + epsilon


def compare(policy: Policy, rows: Sequence[Row], *, samples: bool) -> Difference | None:
    """Compare log-probabilities with the literal computation. Returns the first difference, or None if there is none.

    samples  also compare the torch sampler's log-probabilities

    `Policy.logprobs` of all rows is computed twice as a batch, in training mode. Both results must be equal, up to rounding, to
    each other and to the literal log-probabilities. The literal log-probabilities must not depend on later tokens.
    """
    with torch.no_grad():
        expected = [literal(policy, row) for row in rows]
    if not all(values.isfinite().all() for values in expected):
        return Difference("the model's own log-probabilities are not finite")
    noise = rounding(policy, rows, expected)
    if not math.isfinite(noise):
        return Difference("the model's own log-probabilities are not finite if its embeddings are rounded differently")
    tolerance = MULTIPLE * noise

    def differs(distance: float, what: str, of_sampler: bool = False) -> Difference | None:
        if distance <= tolerance:
            return None
        return Difference(f"{what} by {distance:.2g} nats, but rounding causes only {noise:.1g}", of_sampler)

    row = max(rows, key=lambda row: len(row.completion))
    if len(row.completion) > 1:
        half = len(row.completion) // 2
        with torch.no_grad():
            start = literal(policy, Row(row.prompt, row.completion[:half]))
        if wrong := differs(
            _distance([start], [expected[rows.index(row)][:half]]),
            "the log-probabilities of a text change if more tokens follow,",
        ):
            return wrong
    if wrong := _compare_batch(policy, rows, expected, differs):
        return wrong
    return _compare_sampler(policy, rows, differs) if samples else None


@torch.no_grad()
def _compare_sampler(
    policy: Policy, rows: Sequence[Row], differs: Callable[..., Difference | None]
) -> Difference | None:
    drawn, sampled = zip(*sample(policy, rows), strict=True)
    expected = [literal(policy, row) for row in drawn]
    of_engine = "the torch sampler's log-probabilities differ from the model's own"
    wrong = differs(_distance(sampled, expected), of_engine, of_sampler=True)
    if wrong is None:
        return None
    try:
        distance = _distance([_by_token(policy, row) for row in drawn], expected)
    except Exception:  # the model's own code may raise any exception; report the known difference
        return wrong
    of_model = (
        "the model's log-probabilities computed token by token, as in sampling, differ from those of the whole text"
    )
    return differs(distance, of_model) or wrong


def _compare_batch(
    policy: Policy, rows: Sequence[Row], expected: Sequence[Tensor], differs: Callable[..., Difference | None]
) -> Difference | None:
    batch = batch_of(rows).to(policy.device)
    with torch.no_grad():
        first, second = (policy.logprobs(batch, 1.0)[0] for _ in range(2))
    again = "the log-probabilities of the same batch differ when they are computed again,"
    if wrong := differs(_distance([first], [second]), again):
        return wrong
    alone = "the log-probabilities of rows in a batch differ from those of each row alone"
    ours = [values[: len(theirs)] for values, theirs in zip(first, expected, strict=True)]
    return differs(_distance(ours, expected), alone)


def compare_gradients(policy: Policy, rows: Sequence[Row]) -> Difference | None:
    """Compare the gradient of the summed log-probabilities of a batch with the gradient of the literal computation."""

    def gradient(values: Callable[[], Tensor]) -> Tensor:
        policy.model.zero_grad()
        values().backward()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in policy.parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        policy.model.zero_grad()
        return flat

    batch = batch_of(rows).to(policy.device)
    expected = gradient(lambda: torch.cat([literal(policy, row) for row in rows]).sum())
    ours = gradient(lambda: policy.logprobs(batch, 1.0)[0].sum())
    distance = ((ours - expected).norm() / expected.norm()).item()
    if distance <= GRADIENTS:
        return None
    return Difference(f"the gradient of a batch differs from the gradient of its rows by {distance:.2g} of its norm")


def sample(policy: Policy, rows: Sequence[Row]) -> Iterator[tuple[Row, Tensor]]:
    """Sample two completions of each prompt. Yields (row, log-probabilities [T] of the torch sampler) for each completion."""
    tokens = max(len(row.completion) for row in rows)
    prompts = [list(prompt) for prompt in dict.fromkeys(tuple(row.prompt) for row in rows)]
    with policy.gathered():
        groups = TorchEngine(policy, 2 * len(prompts)).generate(Request(prompts, 2, Sampling(1.0, tokens, seed=0)))
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            yield Row(prompt, completion.token_ids), torch.tensor(completion.sampling_logprobs)


def batch_of(rows: Sequence[Row]) -> Batch:
    """Make a batch of rows. Rows with the same prompt form a group."""
    groups = []
    for row in rows:
        completion = Completion(row.completion, [0.0] * len(row.completion), "", truncated=False)
        groups.append(
            Group(Prompt(Problem("", "", "", ""), "", row.prompt), [completion], [Reward(0.0, 0.0, None, "ok")])
        )
    batch = collate(groups, torch.zeros(len(rows), 1), mask_truncated=False)
    prompts = [row.prompt for row in rows]
    return replace(batch, groups=torch.tensor([prompts.index(prompt) for prompt in prompts]))


def _by_token(policy: Policy, row: Row) -> Tensor:
    """Compute the log-probabilities [T] of a row's completion token by token, without padding, with the model's default cache.

    May raise any exception, for example if the model has no cache.
    """
    ids = torch.tensor([row.prompt + row.completion], device=policy.device)
    model = policy.model.get_base_model() if hasattr(policy.model, "peft_config") else policy.model
    name = next(name for name in CACHES if name in inspect.signature(model.forward).parameters)
    first = len(row.prompt)
    cache: dict[str, Any] = {}
    logits: list[Tensor] = []
    with policy.gathered(), policy.evaluating(), policy.autocast(), policy.uncompiled():
        for start, end in itertools.pairwise([0, *range(first, ids.shape[1])]):
            output = model(input_ids=ids[:, start:end], use_cache=True, **cache)
            cache = {name: output[name]}
            logits.append(output.logits[0, -1].float())
    return torch.stack(logits).log_softmax(-1).gather(1, ids[0, first:, None])[:, 0]


def _in_float32(head: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    with torch.autocast(output.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return nn.functional.linear(inputs[0].float(), head.weight.float(), bias)


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference between corresponding values, or NaN if any value is NaN."""
    pairs = zip(ours, theirs, strict=True)
    return (
        torch.cat([(a.detach().cpu().double() - b.detach().cpu().double()).flatten() for a, b in pairs])
        .abs()
        .max()
        .item()
    )


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Switch the model to the attention implementation `name` within the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
