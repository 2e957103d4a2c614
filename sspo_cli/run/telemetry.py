"""Measurement of each rank's time and memory, and of the model FLOPs utilization of learning."""

from collections.abc import Mapping

import torch

from sspo_cli import ranks
from sspo_cli.config import ModelOptions
from sspo_cli.memory.shape import ModelShape, NotEstimated, read_shape
from sspo_cli.policy.batch import Batch
from sspo_cli.policy.model import Policy

# Dense bfloat16 FLOPs per second with float32 accumulation, from the GPUs' data sheets, by a part of the device name.
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
PHASES = ("time/sync", "time/sampling", "time/grading", "time/learning")  # measured on each rank


class Telemetry:
    """Measures each step. All ranks must call its methods."""

    def __init__(self, policy: Policy, options: ModelOptions) -> None:
        """Look up the peak speed of the GPU and the sizes of the model. FLOPs utilization is measured only if both are known."""
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
        ranks.waited()  # resets the time that was waited before the first step

    def sampled(self, tokens: int) -> None:
        """Add to the number of tokens that this rank has sampled."""
        self._sampled += tokens

    def metrics(self, minibatch: Batch, times: Mapping[str, float]) -> dict[str, float]:
        """Return the measurements of the last step.

        minibatch  minibatch of the step
        times      metrics of `Clock` for the step

        If there are several ranks, each rank N has its own metrics:

        time/rank_N_{sync,sampling,grading,learning}  seconds of the step
        time/rank_N_waiting            seconds of the step in which the rank waited for other ranks in exchanges of data
        time/rank_N_tokens_per_second  tokens that the rank has sampled in this process, per second of sampling
        device/memory                  peak memory of the step in GB, on a GPU; device/rank_N_memory if there are several ranks.
                                       torch also counts the memory of vLLM in this process while vLLM sleeps.
        device/flop_utilization        `flops` per second of learning, as a share of the peak speed of all ranks' GPUs
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
        own |= {name: times[name] for name in PHASES}
        own["time/waiting"] = ranks.waited()
        own["time/tokens_per_second"] = self._sampled / self._sampling if self._sampling else 0.0
        for number, values in enumerate(ranks.every(list(own.values()))):
            for name, value in zip(own, values, strict=True):
                family, _, what = name.partition("/")
                measured[f"{family}/rank_{number}_{what}"] = value
        return measured


def flops(shape: ModelShape, minibatch: Batch, trains_all: bool) -> float:
    """Return the model FLOPs of the forward and backward passes of a minibatch, without recomputation.

    trains_all  True if all weights are trained, False for LoRA

    Only matrix products are counted: 2 FLOPs for each token and weight that the token is multiplied with, and the products of
    causal attention. The backward pass has twice the FLOPs of the forward pass if all weights are trained. For LoRA, it is
    counted with the FLOPs of the forward pass, because the model's own weights have no gradient.
    """
    prompts, texts = minibatch.prompt_lengths.double(), minibatch.lengths.double()
    of_groups = {group: row for row, group in enumerate(minibatch.groups.tolist())}
    computed = prompts[list(of_groups.values())] if shape.shares else prompts
    weights = sum(inputs * outputs for inputs, outputs in shape.linear.values())
    if shape.experts:  # in no linear layer; `intermediate` is the total width per token
        weights += shape.layers * 3 * shape.hidden * shape.intermediate
    # Number of pairs of a token and a token that it attends to.
    pairs = (computed.square() / 2).sum() + (texts * prompts + texts.square() / 2).sum()
    forward = 2 * weights * (computed.sum() + texts.sum()) + 2 * shape.head * texts.sum()
    forward += 4 * shape.layers * shape.queries * pairs
    return forward.item() * (3 if trains_all else 2)
