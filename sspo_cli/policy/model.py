"""The policy: a causal language model, its tokenizer, and its log-probabilities of sampled completions."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, border
from sspo_cli.policy.batch import Batch
from sspo_cli.policy.kernels import compile_layers, use_liger
from sspo_cli.policy.logprobs import BLOCK_ELEMENTS, token_logprobs
from sspo_cli.policy.packing import ATTENTION, can_share_prompts, pack
from sspo_cli.policy.tiny import tiny_model, tiny_tokenizer

# Its progress bars and warnings would be drawn over the run's own display; what matters of them is checked here.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
for name in ("torchao", "torch.utils._pytree"):  # transformers imports torchao where it is installed
    logging.getLogger(name).setLevel(logging.ERROR)

# What a model's config may say; beyond that it is damaged.
LARGEST_SIZES = {
    "num_hidden_layers": 1000,
    "hidden_size": 2**17,
    "intermediate_size": 2**20,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**30,
}
MODEL_FILES = (".json", ".model", ".safetensors", ".bin")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Policy:
    """π_θ.

    model      a Hugging Face causal LM, possibly wrapped by peft
    tokenizer  its tokenizer, with a chat template
    device     where the weights are
    dtype      of the forward pass; what is trained is in float32, or as `model.weights` says
    compiled   whether its layers are compiled by torch.compile
    """

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def end_ids(self) -> list[int]:
        """Every end-of-sequence id: the tokenizer's and those that the model's generation config adds."""
        declared = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = declared if isinstance(declared, list) else [declared]
        return sorted({token for token in (*ids, self.tokenizer.eos_token_id) if token is not None})

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_ids[0]

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its vocabulary projection."""
        model = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        return getattr(model, model.base_model_prefix)

    @property
    def head(self) -> nn.Linear:
        return self.model.get_output_embeddings()

    def projection(self) -> Callable[[Tensor], Tensor]:
        """Make the function hidden [N, H] -> logits [N, V].

        In float32: rounded to bfloat16 they would differ from one another by more than the policies that are compared. To be
        made anew after each update, since it may hold a copy of the weights.
        """
        weight, bias = self.head.weight.float(), None if self.head.bias is None else self.head.bias.float()

        def project(hidden: Tensor) -> Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return nn.functional.linear(hidden.float(), weight, bias)

        return project

    @property
    def shares_prompts(self) -> bool:
        """Whether `logprobs` computes the prompt of a group once for all of its completions in the batch."""
        return self.model.config._attn_implementation == ATTENTION

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def context(self) -> int | None:
        """Tokens that a prompt and its completion may have together; None where the model does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def uncompiled(self) -> AbstractContextManager[Any]:
        """Leave compiled layers out, for sampling, where every token would be another shape to compile for."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def logprobs(self, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """Compute log π_θ(y_t | x, y_<t) at the sampling temperature, and the entropy there: both [B, T], 0 outside the mask.

        The next-token shift exists here and nowhere else.
        """
        rows, steps = batch.mask.nonzero(as_tuple=True)  # [N] each: the tokens y_t that count
        with self.autocast():
            logprobs, entropy = token_logprobs(
                self._hidden_before(batch, rows, steps),
                batch.tokens[rows, batch.prompt_lengths[rows] + steps],
                self.head.weight,
                self.head.bias,
                temperature,
            )
        empty = torch.zeros(batch.mask.shape, device=self.device)
        return empty.index_put((rows, steps), logprobs), empty.index_put((rows, steps), entropy)

    def _hidden_before(self, batch: Batch, rows: Tensor, steps: Tensor) -> Tensor:
        """Compute the last hidden state [N, H] of the token before each completion token `steps` of `rows`, [N] each."""
        if not self.shares_prompts:
            hidden = self.decoder(input_ids=batch.tokens, use_cache=False).last_hidden_state
            return hidden[rows, batch.prompt_lengths[rows] + steps - 1]
        packing = pack(batch, self.dtype)
        hidden = self.decoder(
            input_ids=packing.tokens,
            position_ids=packing.positions,
            attention_mask=packing.mask,  # four-dimensional ones are left as they are
            packing=packing,
            use_cache=False,
        ).last_hidden_state
        return hidden[0, packing.before[rows, steps]]

    def check_logits(self) -> None:
        """Raise UserError if the model does more to its logits than a projection (soft caps, scales)."""
        ids = (torch.arange(8, device=self.device) % self.vocabulary).unsqueeze(0)
        failure = f"{type(self.model).__name__} cannot compute logits"
        with border(failure, torch.OutOfMemoryError), torch.no_grad(), self.autocast():
            ours = self.projection()(self.decoder(input_ids=ids, use_cache=False).last_hidden_state)
            theirs = self.model(input_ids=ids, use_cache=False).logits.float()
        drift = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not isinstance(self.head, nn.Linear):
            raise UserError(
                "an adapter on the vocabulary projection would not be trained; leave it out of model.lora.targets"
            )
        if drift > (1e-4 if self.dtype == torch.float32 else 0.05):
            raise UserError(
                f"the logits of {type(self.model).__name__} differ by {drift:.2g} of their size from a plain projection of its "
                "last hidden state; sspo cannot train a model that transforms its logits"
            )

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that `AutoModelForCausalLM.from_pretrained` opens (LoRA: the adapter)."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)


def fingerprint(policy: Policy) -> str:
    """Hash the weights and how they are computed with."""
    digest = xxhash.xxh3_128(f"{policy.dtype} {policy.device.type} {policy.end_ids}".encode())
    for name, tensor in policy.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def resolve_device(name: str) -> torch.device:
    """Find the device; `auto` is the first GPU if there is one. Raises UserError for one that is not there or not supported."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"device = {name} is not available here; use auto or cpu") from None
    if device.type not in BLOCK_ELEMENTS:
        raise UserError(f"device = {name} is not one that sspo computes on; use auto, cpu or cuda")
    return device


def load_policy(options: ModelOptions, device: torch.device, folder: Path | None = None) -> Policy:
    """Load the policy of a config.

    `folder` holds weights to use instead of the config's own: a cold start's or a checkpoint's.

    Raises UserError for a model that cannot be loaded and for one without a tokenizer or a chat template.
    """
    dtype = _compute_dtype(options, device)
    weights_dtype = dtype if options.lora else DTYPES[options.weights]
    arguments = {"dtype": weights_dtype, "attn_implementation": options.attention, "trust_remote_code": False}
    adapter = folder if folder is not None and (folder / "adapter_config.json").is_file() else None
    source = str(folder) if folder is not None and adapter is None else options.name
    with border(f"model.name = {source} cannot be loaded", torch.OutOfMemoryError):
        if source is None:
            tokenizer = tiny_tokenizer()
            model = tiny_model(options.tiny, tokenizer, weights_dtype)
        else:
            revision = options.revision if source == options.name else None
            tokenizer = _load_tokenizer(source, revision)
            _check_sizes(source, revision)
            model = AutoModelForCausalLM.from_pretrained(source, revision=revision, **arguments)
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {source} has no chat template; use an instruction-tuned model or add one to it"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {source} has no end-of-sequence token; use an instruction-tuned model")
    if options.attention == "sdpa" and can_share_prompts(model):
        model.set_attn_implementation(ATTENTION)
    _disable_dropout(model)
    if options.kernels == "liger":
        use_liger(model, device)
    if options.lora:
        with border(
            f"model.lora cannot be added to {source}{f' from {adapter}' if adapter else ''}", torch.OutOfMemoryError
        ):
            model = _with_lora(model, options, adapter)
    if options.gradient_checkpointing:
        _enable_gradient_checkpointing(model)
        if options.lora:
            model.enable_input_require_grads()
    if options.kernels == "compiled":
        compile_layers(model)
    # Beside bfloat16, the projection's float32 products in TF32: fifteen times faster, and with more digits than bfloat16
    # keeps. The setting is the process's, so a float32 policy after a bfloat16 one takes it back.
    torch.set_float32_matmul_precision("high" if dtype == torch.bfloat16 else "highest")
    model = model.to(device).train(options.gradient_checkpointing)
    return Policy(model, tokenizer, device, dtype, compiled=options.kernels == "compiled")


def _load_tokenizer(source: str, revision: str | None) -> Any:
    if Path(source).is_dir():
        paths = [path for path in Path(source).iterdir() if path.suffix in MODEL_FILES]
        if folders := [path for path in paths if not path.is_file()]:
            raise UserError(f"{folders[0]} is no file, so that the model cannot be loaded; copy it anew")
        names = {path.name for path in paths}
        if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"}:
            raise UserError(f"the model folder {source} has no tokenizer; copy the tokenizer's files into it")
        if "config.json" not in names:
            raise UserError(f"the model folder {source} has no config.json, so it is not a Hugging Face model")
        if not any(name.endswith((".safetensors", ".bin")) for name in names):
            raise UserError(f"the model folder {source} has no weights (*.safetensors)")
    return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def _check_sizes(source: str, revision: str | None) -> None:
    """Raise UserError for a config whose sizes no model has; building it would fail in some layer, or hang."""
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    for name, largest in LARGEST_SIZES.items():
        size = getattr(config, name, None)
        if size is not None and not (type(size) is int and 0 < size <= largest):
            raise UserError(f"the config of {source} has {name} = {size!r}; it must be from 1 to {largest:,}")


def _with_lora(model: Any, options: ModelOptions, adapter: Path | None) -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("model.lora needs peft; install it with `pip install 'sspo[lora]'`") from None
    if adapter is not None:
        return peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    assert options.lora
    config = peft.LoraConfig(
        r=options.lora.rank,
        lora_alpha=options.lora.alpha,
        lora_dropout=0.0,
        target_modules=options.lora.targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.lora.seed)
        return peft.get_peft_model(model, config)


def _enable_gradient_checkpointing(model: Any) -> None:
    arguments = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name since transformers 5.20
        model.activation_checkpointing_enable(arguments)
    else:
        model.gradient_checkpointing_enable(arguments)


def _disable_dropout(model: nn.Module) -> None:
    """Disable dropout: the first minibatch must have ρ = 1 exactly, also in training mode, as gradient checkpointing needs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  a plain float, not a parameter or a submodule


def _compute_dtype(options: ModelOptions, device: torch.device) -> torch.dtype:
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return DTYPES[options.weights]
