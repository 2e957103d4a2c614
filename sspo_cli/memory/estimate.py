"""Estimate of a run's memory on its device, separately for learning and sampling.

The sizes of weights, gradients, optimizer state, copies and caches are exact. Activations are estimated from the tensors that
the layers of a typical decoder store for the backward pass.
"""

import math
from dataclasses import dataclass

from sspo_cli.config import RunOptions, VllmOptions
from sspo_cli.evaluation.benchmark import Conditions
from sspo_cli.memory.shape import ModelShape
from sspo_cli.policy.logprobs import BLOCK_ELEMENTS
from sspo_cli.policy.sharding import GATHERED_TOGETHER
from sspo_cli.rollout.torch_engine import GROWTH
from sspo_cli.rollout.vllm_engine import CPU_CACHE_GIB

PROMPT = 256  # assumed length of the longest prompt in tokens, because the data sets are not read yet
FLOAT = 4  # bytes
MOMENT = 1 + 4 / 256  # bytes of an 8-bit value of the optimizer state; each block of 256 values has a float32 scale
# Bytes that a process needs before it computes: on a GPU for the CUDA context, workspaces and a sleeping vLLM; on a CPU for
# libraries.
RESERVE = {"cuda": 3e9, "cpu": 0.6e9}
VLLM_WORK = 2e9  # bytes that vLLM needs in addition to weights and cache


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a run.

    kind      cuda or cpu
    total     bytes of memory; for a rank on a CPU, the rank's share of the machine's memory
    bfloat16  True if `auto` as `model.dtype` selects bfloat16 on this device
    vllm      True if vLLM samples in this process
    ranks     number of ranks over which weights, gradients and optimizer state are sharded
    """

    kind: str
    total: float
    bfloat16: bool
    vllm: bool
    ranks: int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a run. `parts` maps each use of memory to its bytes; all parts are needed at the same time."""

    name: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def estimate(options: RunOptions, shape: ModelShape, device: Device) -> list[Phase]:
    """Estimate the memory of each phase of a run. The run needs as much memory as its largest phase."""
    return [_learning(options, shape, device), _sampling(options, shape, device)]


def vllm_needs(options: RunOptions, shape: ModelShape, device: Device) -> float:
    """Return the minimum number of bytes that vLLM needs: weights, the KV cache of the longest sequence, and working memory."""
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
    """Return the bytes per value of the compute dtype."""
    dtype = options.model.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.bfloat16 else options.model.weights
    return 2 if dtype == "bfloat16" else FLOAT


def _weight(options: RunOptions, device: Device) -> int:
    """Return the bytes per weight of the model, without adapters."""
    if options.model.lora:
        return _computed(options, device)
    return 2 if options.model.weights == "bfloat16" else FLOAT


def _held(options: RunOptions, shape: ModelShape, device: Device) -> dict[str, float]:
    """Return the memory that is in use during every phase of a run, as {use: bytes}."""
    adapters = shape.trained * FLOAT if options.model.lora else 0
    trained = FLOAT if options.model.lora else _weight(options, device)
    moments = 2 * shape.trained * (MOMENT if options.optimizer.eight_bit else FLOAT)
    if options.optimizer.eight_bit:
        moments += 2 * shape.norms * (trained - MOMENT)
    share = shape.largest_share(device.ranks)
    return {
        "reserve": RESERVE[device.kind],
        "weights": (shape.parameters * _weight(options, device) + adapters) * share,
        "optimizer": moments * share,
    }


def _gathered(options: RunOptions, shape: ModelShape, device: Device) -> dict[str, float]:
    """Return the memory of tensors that each rank gathers temporarily, as {use: bytes}.

    These are the weights of the root module (see `_of_root`) and of two layers. If all weights are trained, the gradients of the
    root module and of one layer are added, and a float32 copy of the gradients of one layer, which is summed over the ranks.
    """
    if device.ranks == 1:
        return {}
    root = _of_root(shape)
    layer = (shape.parameters - root) / shape.layers
    computed, weight = _computed(options, device), _weight(options, device)
    gradient = FLOAT * root + (FLOAT + computed) * layer if options.model.lora is None else 0
    return {"gathered": weight * root + 2 * computed * layer + gradient}


def _of_root(shape: ModelShape) -> int:
    """Return the number of weights of the root module, which ranks gather in the dtype of the trained weights."""
    return shape.parameters if shape.parameters - shape.outside <= GATHERED_TOGETHER else shape.outside


def _learning(options: RunOptions, shape: ModelShape, device: Device) -> Phase:
    trained = FLOAT if options.model.lora else _weight(options, device)
    kept, of_layer = _activations(options, shape, device)
    # A float32 copy of the gradients of the root module, which is summed over the ranks.
    summed = FLOAT * _of_root(shape) if device.ranks > 1 and options.model.lora is None else 0
    parts = _held(options, shape, device) | {
        "gradients": shape.trained * trained * shape.largest_share(device.ranks),
        "activations": kept,
        "buffers": max(of_layer, _projection(options, shape, device), summed),  # these are not needed at the same time
        **_gathered(options, shape, device),
    }
    if device.vllm and not (options.rollout.vllm or VllmOptions()).sleep:
        parts["vLLM"] = vllm_share(options, shape, device)
    return Phase("learning", parts)


def _activations(options: RunOptions, shape: ModelShape, device: Device) -> tuple[float, float]:
    """Return the bytes that all layers store for the backward pass, and the bytes that one layer's backward pass needs.

    Both are for the largest micro-batch. With gradient checkpointing, layers store only their inputs.
    """
    computed, weight = _computed(options, device), _weight(options, device)
    tokens, attended = _micro_batch(options, shape)
    layer = tokens * _kept_by_layer(options, shape, computed, weight)
    layer += attended * 2 * shape.queries * computed  # keys and values, repeated for each query head
    if computed < weight:
        layer += computed * shape.cast / shape.layers  # the layer's weights in bfloat16
    mask = attended * _longest_completion(options) * computed if shape.shares else 0
    # Gradients of the widest product, of its factors and of the hidden states.
    backward = tokens * (3 * computed * shape.intermediate + 3 * FLOAT * shape.hidden)
    if options.model.gradient_checkpointing:
        return shape.layers * tokens * shape.hidden * weight + mask, layer + backward
    return shape.layers * layer + mask, backward


def _micro_batch(options: RunOptions, shape: ModelShape) -> tuple[int, int]:
    """Return the number of tokens of the largest micro-batch, and the number of tokens that its rows attend to.

    A prompt that several rows share is counted once in the first number, and once per row in the second. All rows are assumed
    to have the longest possible prompt and completion. This also applies to demonstrations, because they are not read yet.
    Episodes are assumed to have a single turn, but a micro-batch of one row to have the longest one.
    """
    rollout = options.rollout
    length, longest = PROMPT + rollout.max_new_tokens, PROMPT + _longest_completion(options)
    fitting = max(1, options.learning.token_budget // length)
    rows = min(fitting, rollout.prompts * rollout.group_size // options.learning.mu)
    tokens = rows * length
    if shape.shares:
        tokens = rows * rollout.max_new_tokens + math.ceil(rows / rollout.group_size) * PROMPT
    demonstrated = min(fitting, options.cold_start.batch_size) * length if options.cold_start.steps else 0
    return max(tokens, demonstrated, longest), max(rows * length, demonstrated, longest)


def _kept_by_layer(options: RunOptions, shape: ModelShape, computed: int, weight: int) -> float:
    """Return the bytes per token that a layer stores for the backward pass."""
    trains_all = options.model.lora is None
    hidden, queries, keys = shape.hidden, shape.queries, shape.keys
    # Two norms, computed in float32. Each stores its input, and also the normalized input if the norm's weight is trained.
    norms = 2 * hidden * (FLOAT + (weight if trains_all else 0))
    if shape.has_norms:
        norms += (queries + keys) * (FLOAT + (computed if trains_all else 0))
    # Inputs of linear layers. Autocast makes a separate copy of a float32 input for each linear layer.
    inputs = hidden * computed * (5 if computed < weight else 2) if trains_all else 0
    inputs += queries * computed if trains_all else 0
    inputs += shape.adapted * computed
    attention = 2 * queries * computed  # queries and the result of attention; `_activations` adds keys and values
    # The gate, its activation, the up-projection and their product. An expert also stores its input and output.
    feed_forward = 4 * shape.intermediate * computed
    routed = 3 * shape.experts * hidden * computed
    return norms + inputs + attention + feed_forward + routed


def _projection(options: RunOptions, shape: ModelShape, device: Device) -> float:
    """Return the bytes that the vocabulary projection needs: hidden states, logits, float32 copies of weights and gradient."""
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
        parts["whole weights"] = weight * _of_root(shape) + computed * (shape.parameters - _of_root(shape))
    elif computed < weight:
        parts["copies in bfloat16"] = 2 * shape.cast
    of_token = _cache_of_token(shape, computed)
    sampled = _sampled(options)
    # The cache, and a copy of a single layer's cache while it grows. Logits, probabilities, and a float32 copy of the
    # projection.
    parts["cache"] = (
        max(rows * (PROMPT + limit + GROWTH) for rows, limit in sampled) * of_token * (1 + 1 / shape.layers)
    )
    rows = max(rows for rows, _ in sampled)
    parts["logits"] = FLOAT * (4 * rows * shape.vocabulary + (shape.head if weight < FLOAT else 0))
    return Phase("sampling", parts)


def _sampled(options: RunOptions) -> list[tuple[int, int]]:
    """Return (rows, completion length) of each kind of batch that is sampled, for training and evaluation."""
    rollout = options.rollout
    at_a_time = min(rollout.prompts, max(1, rollout.max_rows // rollout.group_size))
    sampled = [(at_a_time * rollout.group_size, _longest_completion(options))]
    conditions, of_episode = Conditions.of(options), options.episode.max_tokens if options.episode else 0
    limits = [max(limit, of_episode) for limit in options.evaluation.limits(rollout)]
    return [*sampled, *((conditions.chunk * conditions.samples, limit) for limit in limits)]


def _longest_completion(options: RunOptions) -> int:
    """Return the largest number of tokens of a sampled completion, or of an episode if there are episodes."""
    of_episode = options.episode.max_tokens if options.episode else 0
    return max(options.rollout.max_new_tokens, of_episode)


def _cache_of_token(shape: ModelShape, computed: int) -> int:
    """Return the bytes per token of the KV cache of all layers."""
    return 2 * shape.layers * shape.keys * computed
