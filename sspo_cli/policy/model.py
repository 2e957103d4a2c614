"""The policy: a causal language model, its tokenizer, and its log-probabilities of sampled completions."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from sspo_cli import ranks
from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, border
from sspo_cli.policy.adapters import add_adapters
from sspo_cli.policy.batch import Batch
from sspo_cli.policy.experts import Routes, expert_layers, follow_autocast, kept_copies
from sspo_cli.policy.head import evaluating, measure_transform
from sspo_cli.policy.kernels import check_kernels, checkpoint_layers, compile_layers, use_liger
from sspo_cli.policy.logprobs import BLOCK_ELEMENTS, IDENTITY, LogitTransform, token_logprobs
from sspo_cli.policy.packing import ATTENTION, can_share_prompts, pack
from sspo_cli.policy.pretrained import load_pretrained, load_tokenizer
from sspo_cli.policy.sharded_files import save_model
from sspo_cli.policy.sharding import compute, gathered, shard, whole
from sspo_cli.policy.tiny import tiny_model, tiny_tokenizer

# transformers' progress bars and warnings would overwrite the run's display; important problems are checked here.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
for name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao if it is installed
    logging.getLogger(name).setLevel(logging.ERROR)

CONTEXT_NAMES = ("max_position_embeddings", "model_max_length", "max_seq_len", "max_sequence_length", "seq_length")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Policy:
    """The policy π_θ.

    model      a Hugging Face causal LM, possibly wrapped by peft
    tokenizer  its tokenizer, with a chat template
    device     device of the weights
    dtype      dtype of the forward pass; trained weights are float32, or as set by `model.weights`
    compiled   the layers are compiled by torch.compile
    transform  transform of the logits after the vocabulary projection
    notes      notes for the user about the loading of the model
    routes     record of the experts that tokens choose; None without a mixture, and with compiled layers
    """

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False
    transform: LogitTransform = IDENTITY
    notes: tuple[str, ...] = ()
    routes: Routes | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def end_ids(self) -> list[int]:
        """All end-of-sequence ids: the tokenizer's, and those of the model's generation config."""
        declared = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = declared if isinstance(declared, list) else [declared]
        return sorted({token for token in (*ids, self.tokenizer.eos_token_id) if token is not None})

    @property
    def pad_id(self) -> int:
        """The tokenizer's padding id, or an end-of-sequence id if the embedding lacks it; padding is never read."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self.vocabulary else self.end_ids[0]

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its vocabulary projection."""
        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        decoder = getattr(model, model.base_model_prefix, None)
        if decoder is None:  # Llama-4 has the base_model_prefix of its multimodal wrapper
            decoder = next(part for part in model.children() if isinstance(part, PreTrainedModel))
        return decoder

    @property
    def head(self) -> nn.Linear:
        return self.model.get_output_embeddings()

    def projection(self) -> Callable[[Tensor], Tensor]:
        """Make the function hidden [N, H] -> logits [N, V].

        Logits are computed in float32, because rounding them to bfloat16 would exceed the differences between the compared
        policies. The function must be made again after each update, because it may hold a copy of the weights.
        """
        weight, bias = self.head.weight.float(), None if self.head.bias is None else self.head.bias.float()

        def project(hidden: Tensor) -> Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return self.transform(nn.functional.linear(hidden.float(), weight, bias))

        return project

    @property
    def mixes_experts(self) -> bool:
        """True for a mixture of experts, in which rounding can change the experts that a token chooses."""
        return bool(expert_layers(self.model))

    @property
    def shares_prompts(self) -> bool:
        """True if `logprobs` computes the prompt of a group once for all of its completions in the batch."""
        return self.model.config._attn_implementation == ATTENTION

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model can read and write: the smaller one of embedding and projection."""
        return min(self.head.weight.shape[0], self.model.get_input_embeddings().weight.shape[0])

    @property
    def context(self) -> int | None:
        """Largest number of tokens of a prompt with its completion; None if the config does not state it.

        For a multimodal model, the config of its text part states it.
        """
        config = self.model.config.get_text_config(decoder=True)
        return next((value for name in CONTEXT_NAMES if (value := getattr(config, name, None))), None)

    @contextmanager
    def autocast(self, keep_copies: bool = True) -> Iterator[None]:
        """Compute in the policy's dtype. With `keep_copies`, forward passes share the copies of the weights in this dtype."""
        enabled = self.dtype != torch.float32
        computing = torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled, cache_enabled=keep_copies)
        with computing, kept_copies() if keep_copies else nullcontext():
            yield

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Bypass compiled layers for sampling, which would recompile them for every token."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def recorded(self, places: Callable[[], Tensor]) -> AbstractContextManager[None]:
        """Record the experts that the tokens at `places` choose in a forward pass (see `Routes`), if the model has experts."""
        return self.routes.recorded(places()) if self.routes else nullcontext()

    def gathered(self) -> AbstractContextManager[None]:
        """Gather sharded weights on each rank within the block, for work that each rank does independently."""
        return gathered(self.model)

    def logprobs(self, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute log π_θ(y_t | x, y_<t) at the sampling temperature, and the entropy of the same distribution.

        Both have shape [B, T] and are 0 outside the mask. The shift from logits to next tokens happens only here.
        """
        return compute(self.model, self._logprobs, batch, temperature)

    def _logprobs(self, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        rows, steps = batch.mask.nonzero(as_tuple=True)  # [N] each: the unmasked tokens y_t
        with self.autocast(keep_copies=False):  # each weight is used once
            logprobs, entropy = token_logprobs(
                self._hidden_before(batch, rows, steps),
                batch.tokens[rows, batch.prompt_lengths[rows] + steps],
                self.head.weight,
                self.head.bias,
                temperature,
                self.transform,
            )
        empty = torch.zeros(batch.mask.shape, device=self.device)
        return empty.index_put((rows, steps), logprobs), empty.index_put((rows, steps), entropy)

    def _hidden_before(self, batch: Batch, rows: Tensor, steps: Tensor) -> Tensor:
        """Compute the last hidden state [N, H] of the token before each completion token `steps` of `rows`, [N] each."""
        if not self.shares_prompts:
            columns = batch.prompt_lengths[rows] + steps - 1
            with self.recorded(lambda: rows * batch.tokens.shape[1] + columns):
                hidden = self.decoder(input_ids=batch.tokens, use_cache=False).last_hidden_state
            return hidden[rows, columns]
        packing = pack(batch, self.dtype)
        before = packing.before[rows, steps]
        with self.recorded(lambda: before):
            hidden = self.decoder(
                input_ids=packing.tokens,
                position_ids=packing.positions,
                attention_mask=packing.mask,  # transformers does not change four-dimensional masks
                packing=packing,
                use_cache=False,
            ).last_hidden_state
        return hidden[0, before]

    def evaluating(self) -> AbstractContextManager[None]:
        """Set every module to evaluation mode within the block."""
        return evaluating(self.model)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` opens (LoRA: the adapter)."""
        if ranks.size() > 1:
            save_model(self.model, self.tokenizer, folder)
        else:
            self.model.save_pretrained(folder, safe_serialization=True)
            self.tokenizer.save_pretrained(folder)


def fingerprint(policy: Policy) -> str:
    """Hash the weights and the settings that affect what is computed with them."""
    digest = xxhash.xxh3_128(f"{policy.dtype} {policy.device.type} {policy.end_ids}".encode())
    for name, tensor in policy.model.state_dict().items():
        digest.update(name.encode())
        content: Any = whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


class Vocabulary(Protocol):
    """An object with a tokenizer and a vocabulary size, such as a policy."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def vocabulary(self) -> int: ...


def check_ids(ids: Sequence[int], model: Vocabulary, what: str) -> None:
    """Raise UserError if `what` has tokens that the tokenizer has but the model has no weights for."""
    if max(ids, default=0) >= model.vocabulary:
        token = max(ids)
        raise UserError(
            f"{what} has token {token} ({model.tokenizer.decode([token])!r}), but the model has only {model.vocabulary} "
            "tokens: the tokenizer was extended without the model; call resize_token_embeddings and save the model again"
        )


def resolve_device(name: str) -> torch.device:
    """Find the device; `auto` selects the first GPU, or the CPU if there is no GPU.

    Raises UserError if the device is missing or unsupported.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"device = {name} is not available here; use auto or cpu") from None
    if device.type not in BLOCK_ELEMENTS:
        raise UserError(f"device = {name} is not supported by sspo; use auto, cpu or cuda")
    return device


def load_policy(
    options: ModelOptions, device: torch.device, folder: Path | None = None, chat_template: str | None = None
) -> Policy:
    """Load the policy of a config.

    folder         cold start or checkpoint whose weights replace the model's own
    chat_template  chat template that replaces the tokenizer's

    Raises UserError if the model cannot be loaded, or has no tokenizer or no chat template.
    """
    sharded = ranks.size() > 1
    check_kernels(options, ranks.size())
    dtype = compute_dtype(options, device)
    weights_dtype = dtype if options.lora else DTYPES[options.weights]
    source, adapter = source_of(options, folder)
    notes: list[str] = []
    if source is None:
        tokenizer = tiny_tokenizer(options.tiny)
        model = tiny_model(options.tiny, tokenizer, weights_dtype)
        with border(f"model.attention = {options.attention} cannot be used"):
            model.set_attn_implementation(options.attention)
    else:
        revision = options.revision if source == options.name else None
        tokenizer = load_tokenizer(source, revision)
        model, notes = load_pretrained(source, revision, weights_dtype, options.attention, in_parts=sharded)
    check_tokenizer(tokenizer, source, chat_template)
    return build_policy(model, tokenizer, options, device, dtype, adapter, notes, sharded=sharded)


def source_of(options: ModelOptions, folder: Path | None) -> tuple[str | None, Path | None]:
    """Return the name or folder of the weights (None for the embedded model), and the folder of a saved adapter or None."""
    if folder is None:
        return options.name, None
    is_adapter = (folder / "adapter_config.json").is_file()
    return (options.name, folder) if is_adapter else (str(folder), None)


def check_tokenizer(tokenizer: Any, source: str | None, chat_template: str | None) -> None:
    """Set the given chat template. Raises UserError if the tokenizer has no chat template or no end-of-sequence token."""
    if chat_template:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {source} has no chat template; use an instruction-tuned model, or give one as chat.template=FILE"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {source} has no end-of-sequence token; use an instruction-tuned model")


def build_policy(
    model: Any,
    tokenizer: Any,
    options: ModelOptions,
    device: torch.device,
    dtype: torch.dtype,
    adapter: Path | None = None,
    notes: Sequence[str] = (),
    *,
    sharded: bool = False,
) -> Policy:
    """Make a policy from a model, with kernels, adapters and dtypes as set by the options.

    sharded  shard the weights over the ranks

    Raises UserError if the model does not support an option.
    """
    if options.attention == "sdpa" and model.config._attn_implementation == "sdpa" and can_share_prompts(model):
        model.set_attn_implementation(ATTENTION)
    model.eval()  # also when learning: random layers of training mode would break ρ = 1 in the first minibatch
    transform = IDENTITY if sharded else measure_transform(model)
    follow_autocast(model)
    routes = Routes.of(model) if options.kernels != "compiled" else None
    if options.kernels == "liger":
        use_liger(model, device)
    if options.lora:
        model = add_adapters(model, options.lora, adapter)
    if options.gradient_checkpointing:
        checkpoint_layers(model, compiled=options.kernels == "compiled")
        if options.lora:
            model.enable_input_require_grads()
    if options.kernels == "compiled":
        compile_layers(model)
    # With bfloat16, the projection's float32 products use TF32: fifteen times faster, with more digits than bfloat16 has. The
    # setting belongs to the process, so a float32 policy after a bfloat16 one resets it.
    torch.set_float32_matmul_precision("high" if dtype == torch.bfloat16 else "highest")
    if sharded:
        shard(model, dtype, device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            # Not before: in a model that was read in parts, no rank has whole weights.
            transform = measure_transform(model)
    else:
        model = model.to(device)
    compiled = options.kernels == "compiled"
    return Policy(model, tokenizer, device, dtype, compiled, transform, tuple(notes), routes)


def compute_dtype(options: ModelOptions, device: torch.device) -> torch.dtype:
    """Return the dtype of the forward pass."""
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return DTYPES[options.weights]
