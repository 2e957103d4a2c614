"""Sampling with vLLM in the learner's process. Each sync passes the weights in memory."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo

from sspo_cli.config import VllmOptions
from sspo_cli.errors import UserError, first_line, own_names
from sspo_cli.policy.model import Policy
from sspo_cli.rollout.engine import OnCompletion, Request, to_completion
from sspo_cli.rollout.probe import TOLERANCE, probe
from sspo_cli.rollout.weights import checkpoint_weights
from sspo_cli.types import Completion

CPU_CACHE_GIB = 1.0
NOT_INSTALLED = (
    "vLLM is not installed (`pip install vllm` for GPUs, in a separate environment; for CPUs see docs/vllm.md)"
)
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # run in this process, so that weights can be passed in memory
    "VLLM_LOGGING_LEVEL": "CRITICAL",  # vLLM's log would overwrite the run's display and list all requests after a failure
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine:
    """A vLLM engine. A process can have only one, because vLLM keeps global state."""

    def __init__(self, policy: Policy, options: VllmOptions, max_rows: int, temperature: float) -> None:
        """Start vLLM; `temperature` is for the probe. Raises UserError if vLLM cannot sample for the policy."""
        if reason := why_not(policy):
            raise UserError(f"rollout.engine = vllm cannot be used: {reason}; set rollout.engine=torch")
        self.policy = policy
        self.options = options
        self.temperature = temperature
        self.on_gpu = policy.device.type == "cuda"
        self.asleep = False
        with _guarded("start"), _undisturbed(), tempfile.TemporaryDirectory() as folder:
            policy.model.config.save_pretrained(folder)
            policy.tokenizer.save_pretrained(folder)  # vLLM needs the tokenizer for stop strings
            self.llm = self._start(folder, max_rows)

    def _start(self, folder: str, max_rows: int) -> Any:
        """Start vLLM with dummy weights, which the first sync replaces. Prompts and completions are token ids."""
        from vllm import LLM, __version__

        self.name = f"vLLM {__version__} in this process"
        options = self.options
        cache_gib = options.kv_cache_gib or (None if self.on_gpu else CPU_CACHE_GIB)
        return LLM(
            model=folder,
            load_format="dummy",
            dtype=str(self.policy.dtype).removeprefix("torch."),
            # Logits in float32 like the policy's, and log-probabilities after the temperature is applied.
            hf_overrides={"head_dtype": "float32", "architectures": [_architecture(self.policy)]},
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # ignores top-k and top-p that the model's folder may recommend
            max_model_len=-1,  # the longest that fits, up to the model's context length
            max_num_seqs=max_rows,
            # Off on a CPU: between the chunks of a prompt vLLM rewinds the request's generator, which a CPU generator cannot do.
            enable_chunked_prefill=None if self.on_gpu else False,
            gpu_memory_utilization=options.gpu_memory_utilization,
            kv_cache_memory_bytes=int(cache_gib * 2**30) if cache_gib else None,
            enforce_eager=options.enforce_eager or not self.on_gpu,
            enable_sleep_mode=options.sleep and self.on_gpu,
        )

    def check_capacity(self, tokens: int) -> None:
        """Raise UserError if vLLM's cache is too small for `tokens` tokens, because vLLM would truncate completions."""
        capacity = self.llm.llm_engine.model_config.max_model_len
        if tokens > capacity:
            raise UserError(
                f"vLLM's cache has room for sequences of {capacity} tokens, but {tokens} may be needed; raise "
                "rollout.vllm.kv_cache_gib or rollout.vllm.gpu_memory_utilization, or lower max_new_tokens"
            )

    def sync(self, policy: Policy) -> dict[str, float]:
        self.policy = policy
        with _guarded("load the policy's weights"):
            if self.asleep:
                torch.cuda.empty_cache()  # returns the learner's cached memory, so that vLLM can use it
                self.llm.wake_up(tags=["weights"])
            weights = checkpoint_weights(policy, policy.dtype)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self.llm.apply_model(_pack_again)
            if self.asleep:
                self.llm.wake_up(tags=["kv_cache"])
                self.asleep = False
            self.llm.reset_prefix_cache()  # its keys and values belong to the old weights
        tolerance = self.options.tolerance or TOLERANCE[policy.dtype]
        return probe(policy, self.generate, self.temperature, tolerance)

    def generate(self, request: Request, on_completion: OnCompletion | None = None) -> list[list[Completion]]:
        """Sample the completions of each prompt with the seed that `request` has for the prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompts, sampling = request.prompts, request.sampling
        groups: list[list[Completion]] = [[] for _ in prompts]
        engine = self.llm.llm_engine
        self.check_capacity(max(map(len, prompts), default=0) + sampling.max_new_tokens)
        with _guarded("sample"):
            for index, prompt in enumerate(prompts):
                parameters = SamplingParams(
                    n=request.group_size,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k or 0,  # 0 is all tokens
                    max_tokens=sampling.max_new_tokens,
                    seed=request.seed_of(index),
                    logprobs=0,  # only of the chosen token
                    stop_token_ids=self.policy.end_ids,
                    # Stop strings are searched in the text with special tokens, as in the torch engine.
                    stop=list(sampling.stop),
                    include_stop_str_in_output=bool(sampling.stop),
                    skip_special_tokens=False,
                    detokenize=bool(sampling.stop),
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                engine.add_request(str(index), {"prompt_token_ids": prompt}, parameters)
        while engine.has_unfinished_requests():
            with _guarded("sample"):
                outputs = engine.step()
            for output in outputs:
                index = int(output.request_id)
                groups[index] = [self._completion(drawn) for drawn in output.outputs]
                for member, completion in enumerate(groups[index]):
                    if on_completion:
                        on_completion(index, member, completion)
        return groups

    def _completion(self, drawn: Any) -> Completion:
        token_ids = list(drawn.token_ids)
        logprobs = [of_token[token].logprob for token, of_token in zip(token_ids, drawn.logprobs, strict=True)]
        return to_completion(self.policy, token_ids, logprobs, ended=drawn.finish_reason == "stop")

    def sleep(self) -> None:
        if self.options.sleep and self.on_gpu and not self.asleep:
            self.llm.sleep(level=2)  # drops weights and cache, because the next sync brings new weights
            self.asleep = True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo vLLM's changes to this process.

    vLLM writes environment variables, which subprocesses would inherit. It disables `torch.set_num_threads`, or sets the number
    of threads to one. It disables TF32 in float32 products, but the learner's projection in a bfloat16 model must use TF32. On
    a CPU, vLLM would compile the model, which takes longer than it saves and needs a compiler. vLLM also seeds the global
    random generators. This is not undone, because only the optimizer uses these generators, and it seeds them first.
    """
    environment, set_num_threads = dict(os.environ), torch.set_num_threads
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
    if not torch.cuda.is_available():
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        torch._dynamo.config.disable = True
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        written = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
        os.environ.clear()
        os.environ.update(environment | written)


# Dynamo is disabled permanently only when an engine is started; otherwise the learner may compile.
@torch._dynamo.config.patch(disable=torch._dynamo.config.disable)
@_undisturbed()
def why_not(policy: Policy) -> str | None:
    """Explain why vLLM cannot sample for this policy on this machine; return None if it can."""
    try:
        from vllm import ModelRegistry
        from vllm.platforms import current_platform
    except ImportError as error:
        if error.name == "vllm":
            return NOT_INSTALLED
        return f"the installed vLLM cannot be imported: {first_line(error)}"
    config = policy.model.config
    built_for = "cpu" if current_platform.is_cpu() else "cuda"
    if policy.device.type != built_for:
        return f"the installed vLLM is for {built_for}, but the policy is on {policy.device.type}"
    if _architecture(policy) not in ModelRegistry.get_supported_archs():
        return f"the installed vLLM does not support {_architecture(policy)}"
    if policy.device.index:
        return f"vLLM uses the first visible GPU, but the policy is on {policy.device}; select it with CUDA_VISIBLE_DEVICES"
    if built_for == "cpu" and policy.compiled:
        return "sampling with vLLM on a CPU disables torch.compile, which model.kernels = compiled needs"
    if built_for == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        widths = CPUAttentionBackend.get_supported_head_sizes()
        if head not in widths:
            supported = ", ".join(map(str, widths))
            return f"the model's attention heads have size {head}, but on a CPU vLLM supports only {supported}"
    return None


def _architecture(policy: Policy) -> str:
    model = policy.model.get_base_model() if hasattr(policy.model, "peft_config") else policy.model
    return type(model).__name__


def _pack_again(model: torch.nn.Module) -> None:
    """Update the packed copies of weights that vLLM's reload does not update on a CPU.

    These are a vocabulary projection tied to the embedding, and the experts of a mixture of experts.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for name, layer in model.named_modules():
        method = getattr(layer, "quant_method", None)
        if name == "lm_head" and method is not None:
            method.process_weights_after_loading(layer)
        elif kernel := getattr(method, "moe_kernel", None):
            kernel.fused_experts.process_weights_after_loading(layer)


@contextmanager
def _guarded(task: str) -> Iterator[None]:
    """Convert any exception raised by vLLM into a UserError that states which option to change.

    task  what vLLM does in the block, as a verb phrase for the message, such as `start`
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "out of memory" in str(error):  # torch.OutOfMemoryError, or a RuntimeError of vLLM's allocator
            raise UserError(
                f"the GPU has too little memory for vLLM to {task} ({first_line(error)}); lower "
                "rollout.vllm.gpu_memory_utilization or rollout.max_rows"
            ) from None
        raise UserError(
            f"vLLM could not {task}: {own_names(first_line(error))}; change its options under rollout.vllm, or set "
            "rollout.engine=torch to sample without vLLM"
        ) from None
