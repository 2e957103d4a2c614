"""Sampling with the policy's own model. Each prompt is prefilled once for its group, and finished rows leave the batch."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from sspo_cli import ranks
from sspo_cli.policy.model import Policy
from sspo_cli.rollout.engine import Engine, OnCompletion, Request, to_completion
from sspo_cli.rollout.stop_strings import StopStrings
from sspo_cli.types import Completion

GROWTH = 32  # tokens by which the cache grows at a time
BLOCK = 64  # tokens of the vocabulary in a block of `_sample`
STEPS = 64  # number of tokens for which random numbers are drawn at once
# Share of finished rows at which they leave the batch together, because each removal copies the cache of the other rows.
LEAVING = 1 / 8


class TorchEngine:
    """Samples up to `max_rows` completions at the same time with the policy's own weights, so that a sync copies nothing."""

    name = "torch"

    def __init__(self, policy: Policy, max_rows: int) -> None:
        self.policy = policy
        self.max_rows = max_rows

    def check_capacity(self, tokens: int) -> None:
        """Accept any length: the model's context is the only limit."""

    def sync(self, policy: Policy) -> dict[str, float]:
        """Use the policy itself, without copying its weights."""
        self.policy = policy
        return {}

    def sleep(self) -> None:
        """Do nothing: no memory is held between two calls."""

    def generate(self, request: Request, on_completion: OnCompletion | None = None) -> list[list[Completion]]:
        """Sample the prompts in batches of at most `max_rows` completions; a batch has at least one prompt."""
        prompts, group_size = request.prompts, request.group_size
        at_a_time = max(1, self.max_rows // group_size)
        completions: dict[int, Completion] = {}
        stop, words = request.sampling.stop, self.policy.head.weight.shape[0]
        stopping = StopStrings(stop, self.policy.tokenizer, words) if stop else None
        # One autocast context for all steps, because autocast keeps the bfloat16 copy of a weight until its context ends.
        with torch.inference_mode(), self.policy.evaluating(), self.policy.autocast(), self.policy.uncompiled():
            for start in range(0, len(prompts), at_a_time):
                for row, completion in self._sample_rows(request.part(start, at_a_time), stopping):
                    completions[start * group_size + row] = completion
                    if on_completion:
                        on_completion(start + row // group_size, row % group_size, completion)
        return [
            [completions[index * group_size + member] for member in range(group_size)] for index in range(len(prompts))
        ]

    def _sample_rows(self, request: Request, stopping: StopStrings | None) -> Iterator[tuple[int, Completion]]:
        """Yield (row, completion) as soon as a completion is done. Row r belongs to prompt r // group_size."""
        prompts, group_size, sampling = request.prompts, request.group_size, request.sampling
        policy, device = self.policy, self.policy.device
        project = policy.projection()
        ends = torch.tensor(policy.end_ids, device=device)
        tokens, attention = _left_padded(prompts, policy.pad_id, device)
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        width = tokens.shape[1]
        attention = nn.functional.pad(attention, (0, sampling.max_new_tokens), value=1)
        cache = _growing_cache(policy)
        # True for a pure state-space model, which is called without an attention mask after the prompt.
        state_space = "cache_params" in inspect.signature(policy.decoder.forward).parameters
        rows = torch.arange(len(prompts) * group_size, device=device)  # in the batch, including finished ones
        going_on = torch.ones_like(rows, dtype=torch.bool)
        seeds = [request.seed_of(index) for index in range(len(prompts))]
        uniforms = _uniforms(seeds, group_size, device) if sampling.temperature else None
        written = torch.full((len(rows), sampling.max_new_tokens), policy.pad_id, device=device)
        logprobs = torch.zeros(len(rows), sampling.max_new_tokens, device=device)
        routes = None
        if policy.routes:
            routes = torch.zeros(len(rows), sampling.max_new_tokens, policy.routes.layers, dtype=torch.int32)

        for step in range(sampling.max_new_tokens):
            visible = attention[:, : width + step]
            if step and policy.shares_prompts:
                # For full attention, pass the final form of the mask, so that transformers does not build it for each token.
                visible = visible.bool()[:, None, None]
            cached = (
                {"cache_params": cache, "attention_mask": None if step else visible}
                if state_space
                else {"past_key_values": cache, "attention_mask": visible, "position_ids": positions}
            )
            with policy.recorded(partial(_last_places, tokens)):
                hidden = policy.decoder(input_ids=tokens, use_cache=True, **cached).last_hidden_state[:, -1]
            logits = project(hidden)
            positions = positions[:, -1:] + 1
            if step == 0:  # a prompt has one row until here, and one for each of its completions afterwards
                _repeat(cache, group_size)
                logits, positions, attention = (
                    x.repeat_interleave(group_size, 0) for x in (logits, positions, attention)
                )
            if policy.routes and routes is not None:
                codes = policy.routes.codes()
                routes[rows.cpu(), step] = codes if step else codes.repeat_interleave(group_size, dim=0)
            uniform = next(uniforms)[rows] if uniforms else None
            chosen, chosen_logprobs = _sample(logits, sampling.temperature, uniform, sampling.top_p, sampling.top_k)
            written[rows, step], logprobs[rows, step] = chosen, chosen_logprobs
            ending = going_on & torch.isin(chosen, ends)
            if stopping:
                ending |= going_on & stopping.completed(written, rows, step)
            if ending.any():
                going_on = going_on & ~ending
                yield from self._completions(rows[ending], written[:, : step + 1], logprobs, routes, ended=True)
                left = int(going_on.sum())
                if not left:
                    return
                if len(rows) - left >= LEAVING * len(rows):
                    kept = going_on.nonzero().squeeze(1)
                    _select(cache, kept)
                    rows, chosen, positions, attention, going_on = (
                        x[kept] for x in (rows, chosen, positions, attention, going_on)
                    )
            tokens = chosen.unsqueeze(1)
        yield from self._completions(rows[going_on], written, logprobs, routes, ended=False)

    def _completions(
        self, rows: Tensor, written: Tensor, logprobs: Tensor, routes: Tensor | None, ended: bool
    ) -> Iterator[tuple[int, Completion]]:
        length = written.shape[1]
        for row, ids, values in zip(
            rows.tolist(), written[rows].tolist(), logprobs[rows, :length].tolist(), strict=True
        ):
            of_row = None if routes is None else routes[row, :length].numpy().copy()
            yield row, to_completion(self.policy, ids, values, ended, of_row)


def _last_places(tokens: Tensor) -> Tensor:
    """Return the index of the last token of each row in the flattened tokens: [R, n] -> [R]."""
    rows, length = tokens.shape
    return torch.arange(rows, device=tokens.device) * length + length - 1


def whole_weights(engine: Engine) -> AbstractContextManager[None]:
    """Return a context in which each rank holds the torch engine's whole weights; it does nothing for other engines.

    The weights are gathered once, because the ranks call the engine unequal numbers of times.
    """
    return engine.policy.gathered() if isinstance(engine, TorchEngine) else nullcontext()


def passes_weights(engine: Engine) -> bool:
    """Report whether weights are copied before the engine samples: to another engine, or from the other ranks."""
    return ranks.size() > 1 or not isinstance(engine, TorchEngine)


class _GrowingLayer(DynamicLayer):
    """Stores keys and values in buffers that grow by `GROWTH` tokens at a time.

    `DynamicLayer` of transformers copies all keys and values for every new token. The buffers have the compute dtype,
    although rotary embeddings may return float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._buffers: list[Tensor] = []  # of keys and of values; `keys` and `values` are views of the filled part

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        states = (key_states, value_states)
        if not self._buffers or end > self._buffers[0].shape[-2]:
            buffers = [x.new_empty(*x.shape[:2], end + GROWTH, x.shape[3], dtype=self._dtype) for x in states]
            for buffer, filled in zip(buffers, self._buffers, strict=False):
                buffer[:, :, :start] = filled[:, :, :start]
            self._buffers, self.is_initialized = buffers, True
        for buffer, new in zip(self._buffers, states, strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace_buffers([buffer.repeat_interleave(repeats, dim=0) for buffer in self._buffers])

    def batch_select_indices(self, indices: Tensor) -> None:
        self._replace_buffers([buffer.index_select(0, indices) for buffer in self._buffers])

    def _replace_buffers(self, buffers: list[Tensor]) -> None:
        filled = self.get_seq_length()
        self._buffers = buffers
        self.keys, self.values = (buffer[:, :, :filled] for buffer in buffers)


def _growing_cache(policy: Policy) -> DynamicCache:
    """Create a cache with growing layers for full attention. Other layers, such as sliding windows, stay unchanged."""
    cache = DynamicCache(config=policy.model.config)
    cache.layers = [_GrowingLayer(policy.dtype) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _repeat(cache: DynamicCache, repeats: int) -> None:
    """Repeat each row of the cache, including the states of recurrent layers, which transformers' method leaves out."""
    for layer in cache.layers:
        _map_states(layer, lambda state: state.repeat_interleave(repeats, dim=0))
        if hasattr(layer, "batch_repeat_interleave"):
            layer.batch_repeat_interleave(repeats)


def _select(cache: DynamicCache, rows: Tensor) -> None:
    """Keep only the given rows of the cache."""
    for layer in cache.layers:
        _map_states(layer, lambda state: state.index_select(0, rows))
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(rows)


def _map_states(layer: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Apply `change` to the states [rows, ...] of a recurrent or convolutional layer. Attention layers have no states."""
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for states in (layer.conv_states, layer.recurrent_states):
            states.update({number: change(state) for number, state in states.items() if state is not None})


def _uniforms(seeds: Sequence[int], group_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the random numbers of all rows, [P·G, 2] in [0, 1), once for each token.

    Each prompt has its own generator on the CPU, so that its completions depend neither on the other prompts nor on the device.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]
    while True:
        drawn = np.stack([generator.random((STEPS, group_size, 2)) for generator in generators], axis=1)
        yield from torch.from_numpy(drawn).flatten(1, 2).to(device)


def _sample(
    logits: Tensor, temperature: float, uniform: Tensor | None, top_p: float = 1.0, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sample a token for each row. Returns the tokens and their log-probabilities at the temperature (greedy: at 1).

    logits   [R, V]
    uniform  [R, 2] in [0, 1), float64; None to choose the most probable token
    returns  [R], [R]
    """
    probabilities = (logits / (temperature or 1.0)).softmax(dim=-1)
    if top_p < 1 or top_k:
        probabilities = _truncate(probabilities, top_p, top_k)
    if uniform is None:
        chosen = probabilities.argmax(dim=-1, keepdim=True)
    else:
        # Draw a block of the vocabulary, then a token of the block: torch.multinomial draws a number for each token of the
        # vocabulary, which takes longer than the vocabulary projection.
        blocks = nn.functional.pad(probabilities, (0, -logits.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        block = _draw(blocks.sum(dim=2), uniform[:, :1])
        word = _draw(blocks.take_along_dim(block.unsqueeze(2), dim=1).squeeze(1), uniform[:, 1:])
        chosen = (block * BLOCK + word).clamp_(max=logits.shape[1] - 1)
    return chosen.squeeze(1), probabilities.gather(1, chosen).squeeze(1).log()


def _truncate(probabilities: Tensor, top_p: float, top_k: int | None) -> Tensor:
    """Truncate distributions [R, V] to the `top_k` most probable tokens, then to the fewest that reach `top_p`.

    The probabilities are normalized after each of the two steps.
    """
    ranked, words = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ranked[:, top_k:] = 0.0
        ranked = ranked / ranked.sum(dim=-1, keepdim=True)
    before = ranked.cumsum(dim=-1) - ranked
    ranked = ranked.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(1, words, ranked / ranked.sum(dim=-1, keepdim=True))


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw an index with probability proportional to its weight: weights [R, n], uniform [R, 1] in [0, 1) -> [R, 1]."""
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)


def _left_padded(prompts: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask [P, longest], padded on the left so that all rows continue in the same column."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    attention = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return tokens, attention
