"""Sampling: the engines that draw completions from the behaviour policy."""

import importlib.util
from typing import Literal

import torch

from sspo_cli import ranks
from sspo_cli.config import RolloutOptions, VllmOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import Policy
from sspo_cli.rollout.engine import Engine
from sspo_cli.rollout.torch_engine import TorchEngine


def open_engine(options: RolloutOptions, policy: Policy, named: bool, learns: bool = True) -> Engine:
    """Open the engine that the options select.

    named   True if the options specify a model, False for the embedded tiny model
    learns  True if a learner needs the engine's memory between rollouts. A process can start only one vLLM engine that frees
            its memory.

    Raises UserError if the options require vLLM but it cannot be used, or if its server does not answer.
    """
    vllm = options.vllm or VllmOptions()
    if vllm.server:
        from sspo_cli.rollout.vllm_server import VllmServer

        return VllmServer(policy, vllm, options.max_rows, options.temperature)
    check_engine(options)
    if engine_kind(options, policy, named) == "vLLM":
        from sspo_cli.rollout.vllm_engine import VllmEngine

        vllm = vllm if learns else vllm.model_copy(update={"sleep": False})
        return VllmEngine(policy, vllm, options.max_rows, options.temperature)
    return TorchEngine(policy, options.max_rows)


def check_engine(options: RolloutOptions) -> None:
    """Raise UserError if the options require vLLM in this process, but vLLM is not installed or there are several ranks."""
    check_engine_of_ranks(options)
    if _requires_vllm_here(options) and importlib.util.find_spec("vllm") is None:
        from sspo_cli.rollout.vllm_engine import NOT_INSTALLED

        raise UserError(f"rollout.engine = vllm cannot be used: {NOT_INSTALLED}; set rollout.engine=torch")


def check_engine_of_ranks(options: RolloutOptions) -> None:
    """Raise UserError if the options require vLLM in this process, but there are several ranks."""
    if ranks.size() > 1 and _requires_vllm_here(options):
        raise UserError(
            f"rollout.engine = vllm samples in one process, but this run has {ranks.size()} ranks; start a vLLM server and set "
            "rollout.vllm.server to its address, or set rollout.engine=torch if the whole model fits on each device"
        )


def _requires_vllm_here(options: RolloutOptions) -> bool:
    return options.engine == "vllm" and not (options.vllm and options.vllm.server)


def engine_kind(options: RolloutOptions, policy: Policy, named: bool) -> Literal["torch", "vLLM"]:
    """Return the kind of engine that `open_engine` opens, which is the first word of the engine's name."""
    if options.engine == "vllm" or (options.vllm and options.vllm.server):
        return "vLLM"
    is_auto = options.engine == "auto" and named and ranks.size() == 1
    return "vLLM" if is_auto and _vllm_fits(policy) else "torch"


def samples_by_torch(options: RolloutOptions, device: torch.device) -> bool:
    """Return True if the options and the device alone determine that the torch engine samples."""
    if ranks.size() > 1:
        return not (options.vllm and options.vllm.server)
    if options.engine == "auto" and options.vllm is None:
        return device.type != "cuda" or importlib.util.find_spec("vllm") is None
    return options.engine == "torch"


def _vllm_fits(policy: Policy) -> bool:
    """Report whether `rollout.engine = auto` selects vLLM for the policy.

    On a CPU, vLLM is never selected, because the torch engine is as fast.
    """
    if policy.device.type != "cuda" or importlib.util.find_spec("vllm") is None:
        return False
    from sspo_cli.rollout.vllm_engine import why_not

    return why_not(policy) is None
