"""Check that a run fits its device. The memory is estimated from the model's config, before weights are downloaded."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch

from sspo_cli.config import RunOptions, VllmOptions, merge_layers, nest, validate
from sspo_cli.errors import UserError
from sspo_cli.memory.estimate import Device, Phase, estimate, vllm_needs, vllm_share
from sspo_cli.memory.shape import ModelShape, NotEstimated, read_shape
from sspo_cli.policy.model import resolve_device
from sspo_cli.rollout import samples_by_torch

GB = 1e9
TOKEN_BUDGETS = (8192, 4096)
MAX_ROWS = (32, 8)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6)
EIGHT_BIT = {"model.weights": "bfloat16", "optimizer.eight_bit": True}
ADAPTERS = {"model.lora": {"rank": 32}, "model.weights": "float32"}


def check_memory(
    options: RunOptions, device: Device, note: Callable[[str], object], folder: Path | None = None
) -> None:
    """Estimate the memory of a run and compare it with the device's memory.

    note    function that is called with the estimate in a sentence
    folder  checkpoint that is opened instead of the original model

    Raises UserError if the device has too little memory. The message suggests options that need less memory.
    """
    if shape := _shape_or_note(options, note, folder):
        phases = [f"{phase.name} {phase.total / GB:.1f} GB" for phase in estimate(options, shape, device)]
        note(f"estimated memory: {', '.join(phases)}, of {device.total / GB:.1f} GB")
        refuse(options, shape, device)


def preview_memory(options: RunOptions, gigabytes: float | None, note: Callable[[str], object], count: int = 1) -> None:
    """Estimate the memory of each phase of a run and its parts, for a dry run.

    gigabytes  memory of the device of another machine; None for the device of this machine
    note       function that is called with each line of the estimate
    count      number of ranks; the estimate is for one rank

    Raises UserError if the run does not fit the device.
    """
    try:
        if gigabytes:
            device = stated_device(options, gigabytes, count)
        else:
            device = device_here(options, resolve_device(options.device), count)
    except UserError as error:
        note(f"memory: not estimated, because {error}; --device-memory sets the memory of the GPU")
        return
    if shape := _shape_or_note(options, note):
        for line in describe(options, shape, device):
            note(line)
        refuse(options, shape, device)


def _shape_or_note(options: RunOptions, note: Callable[[str], object], folder: Path | None = None) -> ModelShape | None:
    try:
        return read_shape(options.model, folder)
    except NotEstimated as error:
        note(f"memory: not estimated, because {error}")
        return None


def device_here(options: RunOptions, device: torch.device, count: int = 1) -> Device:
    """Return the device of each of `count` ranks on this machine. Ranks on a CPU have equal shares of the memory."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        by_vllm = count == 1 and not samples_by_torch(options.rollout, device) and not _has_server(options)
        return Device("cuda", total, torch.cuda.is_bf16_supported(), by_vllm, count)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count)) if count > 1 else 1
    return Device("cpu", _physical_memory() / here, False, _is_on_cpu_by_vllm(options), count)


def stated_device(options: RunOptions, gigabytes: float, count: int = 1) -> Device:
    """Return the device of each of `count` ranks on another machine, on which vLLM is assumed to be installed.

    gigabytes  memory of the GPU of each rank, or memory of the machine if the options select the CPU
    """
    if options.device == "cpu":
        return Device("cpu", gigabytes * GB / count, False, _is_on_cpu_by_vllm(options), count)
    wanted = options.rollout.engine == "vllm" or (options.rollout.engine == "auto" and options.model.name is not None)
    by_vllm = count == 1 and wanted and not _has_server(options)
    return Device("cuda", gigabytes * GB, bfloat16=True, vllm=by_vllm, ranks=count)


def _has_server(options: RunOptions) -> bool:
    """Report whether a vLLM server samples. The server does not use the memory of this device."""
    return options.rollout.vllm is not None and options.rollout.vllm.server is not None


def _is_on_cpu_by_vllm(options: RunOptions) -> bool:
    """Report whether vLLM samples in this process on a CPU, which requires the option `rollout.engine=vllm`."""
    return options.rollout.engine == "vllm" and not _has_server(options)


def describe(options: RunOptions, shape: ModelShape, device: Device) -> list[str]:
    """Describe the estimate as lines: a heading, and a line for each phase."""
    where = "GPU" if device.kind == "cuda" else "machine"
    large = shape.parameters >= 1e8
    size = f"{shape.parameters / 1e9:.2f} billion" if large else f"{shape.parameters / 1e6:.1f} million"
    several = f" on {device.ranks} ranks" if device.ranks > 1 else ""
    head = f"estimated memory on a {where} of {device.total / GB:.1f} GB, for {size} parameters{several}"
    return [head, *(f"  {_sentence(phase)}" for phase in estimate(options, shape, device))]


def refuse(options: RunOptions, shape: ModelShape, device: Device) -> None:
    """Raise UserError if a run does not fit the device. The message suggests options with which the run fits."""
    if problem := _problem(options, shape, device):
        raise UserError(f"{problem}; {_remedy(options, shape, device)}")


def _problem(options: RunOptions, shape: ModelShape, device: Device) -> str | None:
    """Describe why the run does not fit the device; return None if the run fits."""
    if device.vllm and device.kind == "cuda" and (options.rollout.vllm or VllmOptions()).kv_cache_gib is None:
        share, needed = vllm_share(options, shape, device), vllm_needs(options, shape, device)
        if share < needed:
            return (
                f"vLLM's share of the GPU is {share / GB:.1f} GB, but its weights and the cache of one sequence need "
                f"{needed / GB:.1f} GB"
            )
    largest = max(estimate(options, shape, device), key=lambda phase: phase.total)
    if largest.total <= device.total:
        return None
    where = "GPU" if device.kind == "cuda" else "machine"
    return f"the run does not fit this {where} of {device.total / GB:.1f} GB: {_sentence(largest)}"


def _sentence(phase: Phase) -> str:
    parts = [f"{name} {size / GB:.1f}" for name, size in phase.parts.items() if size >= 0.05 * GB]
    return f"{phase.name} needs {phase.total / GB:.1f} GB ({', '.join(parts)})"


def _remedy(options: RunOptions, shape: ModelShape, device: Device) -> str:
    """Suggest the first of `_changes` with which the run fits, or a larger device if the run fits with none of them."""
    for changes in _changes(options, device):
        try:
            changed = validate(_changed(options, changes))
        except UserError:  # the changed options contradict each other
            continue
        lora = changed.model.lora
        shape_now = shape.with_adapters(lora) if lora and not options.model.lora else shape
        by_vllm = device.vllm and changed.rollout.engine != "torch"
        if not _problem(changed, shape_now, replace(device, vllm=by_vllm)):
            return f"set {_written(changes)}"
    return "no options make it fit on one device; use a smaller model, a larger device, or several GPUs (--nproc)"


def _changes(options: RunOptions, device: Device) -> Iterator[dict[str, Any]]:
    """Yield changes of the options that reduce memory, in order of preference.

    Changes that do not affect what is learned come first. They are followed by an 8-bit optimizer, on a single rank with bfloat16
    weights, and by LoRA, each alone and combined with the first changes.
    """
    same: list[Mapping[str, Any]] = []
    if not options.model.gradient_checkpointing:
        same.append({"model.gradient_checkpointing": True})
    same += [{"learning.token_budget": n} for n in TOKEN_BUDGETS if n < options.learning.token_budget]
    if device.vllm:
        given = (options.rollout.vllm or VllmOptions()).gpu_memory_utilization
        same += [{"rollout.vllm.gpu_memory_utilization": share} for share in SHARES if share != given]
    fewer_rows = [{"rollout.max_rows": rows} for rows in MAX_ROWS if rows < options.rollout.max_rows]
    by_torch = {"rollout.engine": "torch", "rollout.vllm": None} if device.vllm else {}
    same += [{**by_torch, **rows} for rows in fewer_rows]
    kept: list[Mapping[str, Any]] = [{}]
    if options.model.lora is None:
        kept += [EIGHT_BIT if device.ranks == 1 else {"optimizer.eight_bit": True}, ADAPTERS]
    for held in kept:
        for chosen in chain.from_iterable(combinations(same, count) for count in range(3)):
            names = [name for change in chosen for name in change]
            if len(set(names)) == len(names) and (held or chosen):
                yield {**held, **{name: value for change in chosen for name, value in change.items()}}


def _changed(options: RunOptions, changes: Mapping[str, Any]) -> dict[str, Any]:
    return merge_layers([options.model_dump(mode="json"), nest(changes)])


def _written(changes: Mapping[str, Any]) -> str:
    """Format the changes as command-line options."""
    values = {name: json.dumps(value).replace('"', "") for name, value in changes.items()}
    return " and ".join(f"{name}={value}" for name, value in values.items())


def _physical_memory() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
