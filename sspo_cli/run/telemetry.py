"""Measurement of what each rank does and takes: time, memory, and the share of a GPU's speed that learning uses."""

from collections.abc import Mapping

import torch

from sspo_cli import ranks
from sspo_cli.config import ModelOptions
from sspo_cli.memory.shape import ModelShape, NotEstimated, read_shape
from sspo_cli.policy.batch import Batch
from sspo_cli.policy.model import Policy

# Floating point operations per second in bfloat16 with accumulation in float32, without sparsity, as the data sheets say.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
GB = 1e9


class Telemetry:
    """Measures step after step; all ranks call it."""

    def __init__(self, policy: Policy, options: ModelOptions) -> None:
        """Look up the speed of the device and the sizes of the model, which are not known of every one."""
        self._device = policy.device
        self._peak, self._shape, self._trains_all = None, None, options.lora is None
        if self._device.type == "cuda":
            name = torch.cuda.get_device_name(self._device)
            is_known = policy.dtype == torch.bfloat16
            self._peak = next((peak for part, peak in PEAKS.items() if part in name), None) if is_known else None
            try:
                self._shape = read_shape(options)
            except NotEstimated:
                self._peak = None
        self._sampled, self._sampling = 0, 0.0
        ranks.waited()  # before the first step

    def sampled(self, tokens: int) -> None:
        """Count tokens that this rank has sampled."""
        self._sampled += tokens

    def metrics(self, minibatch: Batch, times: Mapping[str, float]) -> dict[str, float]:
        """Return the measurements of the step that took `times`; of several ranks those of each.

        time/rank_N_{sampling,grading,learning}  seconds of the step
        time/rank_N_waiting            seconds in exchanges of objects and rows, until the last rank came to them
        time/rank_N_tokens_per_second  tokens that the rank has sampled in this process, by its seconds of sampling
        device/memory                  GB at the peak of the step, on a GPU; of several ranks device/rank_N_memory
        device/flop_utilization        `flops` by the seconds of learning, as a share of what all ranks' GPUs can do
        """
        measured = {}
        if self._peak and self._shape:
            done = flops(self._shape, minibatch, self._trains_all) / (self._peak * ranks.size())
            measured["device/flop_utilization"] = done / times["time/learning"]
        own = {}
        if self._device.type == "cuda":
            own["device/memory"] = torch.cuda.max_memory_allocated(self._device) / GB
            torch.cuda.reset_peak_memory_stats(self._device)
        if ranks.size() == 1:
            return {**measured, **own}
        self._sampling += times["time/sampling"]
        own |= {name: times[name] for name in ("time/sampling", "time/grading", "time/learning")}
        own["time/waiting"] = ranks.waited()
        own["time/tokens_per_second"] = self._sampled / self._sampling if self._sampling else 0.0
        for number, values in enumerate(ranks.every(list(own.values()))):
            for name, value in zip(own, values, strict=True):
                family, _, what = name.partition("/")
                measured[f"{family}/rank_{number}_{what}"] = value
        return measured


def flops(shape: ModelShape, minibatch: Batch, trains_all: bool) -> float:
    """Count the operations of the forward and backward passes of a minibatch: model FLOPs, nothing that is computed again.

    Products of matrices alone: 2 for each weight that a token meets, and those of causal attention. The backward pass has
    twice as many, or as many if the weights themselves have no gradient.
    """
    prompts, texts = minibatch.prompt_lengths.double(), minibatch.lengths.double()
    of_groups = {group: row for row, group in enumerate(minibatch.groups.tolist())}
    computed = prompts[list(of_groups.values())] if shape.shares else prompts
    weights = sum(inputs * outputs for inputs, outputs in shape.linear.values())
    if shape.experts:  # in tensors of three dimensions; `intermediate` is the width of those that a token meets
        weights += shape.layers * 3 * shape.hidden * shape.intermediate
    # Pairs of a token and one that it attends to.
    pairs = (computed.square() / 2).sum() + (texts * prompts + texts.square() / 2).sum()
    forward = 2 * weights * (computed.sum() + texts.sum()) + 2 * shape.head * texts.sum()
    forward += 4 * shape.layers * shape.queries * pairs
    return forward.item() * (3 if trains_all else 2)
