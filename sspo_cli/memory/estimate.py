"""Estimate of a run's memory on its device, separately for learning and sampling.

The sizes of weights, gradients, moments, copies and caches are exact. Activations are estimated from the tensors that the
layers of a typical decoder store for the backward pass.
"""

import math
from dataclasses import dataclass

from sspo_cli.config import RunOptions, VllmOptions
from sspo_cli.evaluation.benchmark import Conditions
from sspo_cli.memory.shape import ModelShape
from sspo_cli.policy.logprobs import BLOCK_ELEMENTS
from sspo_cli.rollout.torch_engine import GROWTH
from sspo_cli.rollout.vllm_engine import CPU_CACHE_GIB

PROMPT = 256  # assumed tokens of the longest prompt, because the data sets are not read yet
FLOAT = 4  # bytes
MOMENT = 1 + 4 / 256  # bytes of an 8-bit moment: one, and four for the scale of each block of 256
# Bytes that a process needs before it computes: on a GPU for CUDA's context, workspaces and a sleeping vLLM, on a CPU for
# libraries.
RESERVE = {"cuda": 3e9, "cpu": 0.6e9}
VLLM_WORK = 2e9  # bytes of vLLM's share that are neither weights nor cache


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a run.

    kind      cuda or cpu
    total     bytes of memory; for a rank on a CPU, its share of the machine's memory
    bfloat16  the device computes in bfloat16 if `model.dtype` is `auto`
    vllm      vLLM samples in this process
    ranks     number of ranks over which weights, gradients and moments are sharded
    """

    kind: str
    total: float
    bfloat16: bool
    vllm: bool
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a run, with the memory that it holds at the same time: bytes by purpose."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def estimate(options: RunOptions, shape: ModelShape, device: Device) -> list[Phase]:
    """Estimate the memory of a run's phases. The run needs the memory of the largest phase."""
    return [_learning(options, shape, device), _sampling(options, shape, device)]


def vllm_needs(options: RunOptions, shape: ModelShape, device: Device) -> float:
    """Return the bytes that vLLM needs at least: weights, the cache of the longest sequence, and working memory."""
    longest = max(limit for _, limit in _sampled(options))
    of_it = (PROMPT + longest) * _cache_of_token(shape, _computed(options, device))
    return shape.parameters * _computed(options, device) + of_it + VLLM_WORK


def vllm_share(options: RunOptions, shape: ModelShape, device: Device) -> float:
    """Return the bytes of the device that vLLM reserves."""
    vllm = options.rollout.vllm or VllmOptions()
    cache = vllm.kv_cache_gib or (CPU_CACHE_GIB if device.kind == "cpu" else None)
    if cache is not None:
        return shape.parameters * _computed(options, device) + cache * 2**30 + VLLM_WORK
    return vllm.gpu_memory_utilization * device.total


def _computed(options: RunOptions, device: Device) -> int:
    """Return the bytes of a number in the dtype of the computation."""
    dtype = options.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.bfloat16 else options.model.weights
    return 2 if dtype == "bfloat16" else FLOAT


def _weight(options: RunOptions, device: Device) -> int:
    """Return the bytes of one of the model's own weights."""
    if options.model.lora:
        return _computed(options, device)
    return 2 if options.model.weights == "bfloat16" else FLOAT


def _held(options: RunOptions, shape: ModelShape, device: Device) -> dict[str, float]:
    """Return the memory that a run holds in all phases, in bytes by purpose."""
    adapters = shape.trained * FLOAT if options.model.lora else 0
    trained = FLOAT if options.model.lora else _weight(options, device)
    moments = 2 * shape.trained * (MOMENT if options.optimizer.eight_bit else FLOAT)
    if options.optimizer.eight_bit:
        moments += 2 * shape.norms * (trained - MOMENT)
    return {
        "reserve": RESERVE[device.kind],
        "weights": (shape.parameters * _weight(options, device) + adapters) / device.ranks,
        "optimizer": moments / device.ranks,
    }


def _gathered(options: RunOptions, shape: ModelShape, device: Device) -> dict[str, float]:
    """Return the bytes of tensors that each rank gathers temporarily.

    These are the embedding, the projection and two layers, and without LoRA also the gradients of one layer, the embedding
    and the projection.
    """
    if device.ranks == 1:
        return {}
    outside = 2 * shape.head  # embedding and projection; twice their size if they are tied
    layer = (shape.parameters - outside) / shape.layers
    computed, weight = _computed(options, device), _weight(options, device)
    gradient = FLOAT * (layer + outside) if options.model.lora is None else 0
    return {"gathered": outside * weight + 2 * layer * computed + gradient}


def _learning(options: RunOptions, shape: ModelShape, device: Device) -> Phase:
    trained = FLOAT if options.model.lora else _weight(options, device)
    kept, of_layer = _activations(options, shape, device)
    parts = _held(options, shape, device) | {
        "gradients": shape.trained * trained / device.ranks,
        "activations": kept,
        "buffers": max(of_layer, _projection(options, shape, device)),  # the two are not held at the same time
        **_gathered(options, shape, device),
    }
    if device.vllm and not (options.rollout.vllm or VllmOptions()).sleep:
        parts["vLLM"] = vllm_share(options, shape, device)
    return Phase("learning", parts)


def _activations(options: RunOptions, shape: ModelShape, device: Device) -> tuple[float, float]:
    """Return two sizes in bytes: what all layers store of a micro-batch, and what one layer needs in the backward pass.

    With gradient checkpointing, layers store only their inputs.
    """
    computed, weight = _computed(options, device), _weight(options, device)
    tokens, attended = _micro_batch(options, shape)
    layer = tokens * _kept_by_layer(options, shape, computed, weight)
    layer += attended * 2 * shape.queries * computed  # keys and values, repeated for each query head
    if computed < weight:
        layer += computed * shape.cast / shape.layers  # the layer's weights in bfloat16
    mask = attended * options.rollout.max_new_tokens * computed if shape.shares else 0
    # The gradients of the widest product and of its factors, and of a hidden state.
    backward = tokens * (3 * computed * shape.intermediate + 3 * FLOAT * shape.hidden)
    if options.model.gradient_checkpointing:
        return shape.layers * tokens * shape.hidden * weight + mask, layer + backward
    return shape.layers * layer + mask, backward


def _micro_batch(options: RunOptions, shape: ModelShape) -> tuple[int, int]:
    """Return the number of tokens of the largest micro-batch, and the number of tokens that its rows attend to.

    A prompt shared by several rows is counted once in the first number, and for each row in the second. All rows have the
    longest possible prompt and completion. Demonstrations are assumed to be as long, because their lengths are not known yet.
    """
    rollout = options.rollout
    length = PROMPT + rollout.max_new_tokens
    fitting = max(1, options.learning.token_budget // length)
    rows = min(fitting, rollout.prompts * rollout.group_size // options.learning.mu)
    tokens = rows * length
    if shape.shares:
        tokens = rows * rollout.max_new_tokens + math.ceil(rows / rollout.group_size) * PROMPT
    if options.cold_start.steps:
        demonstrated = min(fitting, options.cold_start.batch_size) * length
        return max(tokens, demonstrated), max(rows * length, demonstrated)
    return tokens, rows * length


def _kept_by_layer(options: RunOptions, shape: ModelShape, computed: int, weight: int) -> float:
    """Return the bytes that a layer stores of each token for the backward pass."""
    trains_all = options.model.lora is None
    hidden, queries, keys = shape.hidden, shape.queries, shape.keys
    # Two norms, computed in float32. Each stores its input, and the normalized input if its weight is trained.
    norms = 2 * hidden * (FLOAT + (weight if trains_all else 0))
    if shape.has_norms:
        norms += (queries + keys) * (FLOAT + (computed if trains_all else 0))
    # Inputs of linear layers. Autocast makes a separate copy of a float32 input for each linear layer.
    inputs = hidden * computed * (5 if computed < weight else 2) if trains_all else 0
    inputs += queries * computed if trains_all else 0
    inputs += shape.adapted * computed
    attention = 2 * queries * computed  # queries and result; `_activations` adds keys and values
    # The gate, its activation, the up-projection and their product. An expert also stores its input and output.
    feed_forward = 4 * shape.intermediate * computed
    routed = 3 * shape.experts * hidden * computed
    return norms + inputs + attention + feed_forward + routed


def _projection(options: RunOptions, shape: ModelShape, device: Device) -> float:
    """Return the bytes of the vocabulary projection: hidden states, logits, and float32 copies of weights and gradient."""
    tokens, _ = _micro_batch(options, shape)
    copies = int(_weight(options, device) < FLOAT) + int(options.model.lora is None)
    logits = min(max(BLOCK_ELEMENTS[device.kind], tokens), tokens * shape.vocabulary)
    return FLOAT * (copies * shape.head + 3 * tokens * shape.hidden + 2 * logits)


def _sampling(options: RunOptions, shape: ModelShape, device: Device) -> Phase:
    parts = _held(options, shape, device)
    if device.vllm:
        weights = shape.parameters * _computed(options, device)
        share = vllm_share(options, shape, device)
        return Phase("sampling", parts | {"vLLM's weights": weights, "vLLM's cache": max(0.0, share - weights)})
    computed, weight = _computed(options, device), _weight(options, device)
    if device.ranks > 1:
        if options.rollout.vllm and options.rollout.vllm.server:  # the server needs no memory of this device
            return Phase("sampling", parts)
        parts["whole weights"] = shape.parameters * computed
    elif computed < weight:
        parts["copies in bfloat16"] = 2 * shape.cast
    of_token = _cache_of_token(shape, computed)
    sampled = _sampled(options)
    # The cache, and a copy of one of its layers while that layer grows. Logits, probabilities, and a float32 copy of the
    # projection.
    parts["cache"] = (
        max(rows * (PROMPT + limit + GROWTH) for rows, limit in sampled) * of_token * (1 + 1 / shape.layers)
    )
    rows = max(rows for rows, _ in sampled)
    parts["logits"] = FLOAT * (4 * rows * shape.vocabulary + (shape.head if weight < FLOAT else 0))
    return Phase("sampling", parts)


def _sampled(options: RunOptions) -> list[tuple[int, int]]:
    """Return (rows, completion length) of the batches that the torch engine samples, for training and for evaluation."""
    rollout = options.rollout
    at_a_time = min(rollout.prompts, max(1, rollout.max_rows // rollout.group_size))
    sampled = [(at_a_time * rollout.group_size, rollout.max_new_tokens)]
    conditions = Conditions.of(options)
    return [*sampled, *((conditions.chunk * conditions.samples, limit) for limit in options.evaluation.limits(rollout))]


def _cache_of_token(shape: ModelShape, computed: int) -> int:
    """Return the bytes of a token's keys and values in all layers."""
    return 2 * shape.layers * shape.keys * computed
