"""Opening models and tokenizers that others made: every tensor of the model comes from the file, or the model is refused."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers.auto import AutoHfQuantizer

from sspo_cli.errors import UserError, first_line

NAMED_KEYS = 3  # tensors that a message names


def load_config(source: str, revision: str | None = None) -> Any:
    """Read the config of a model, without its weights.

    Raises UserError if it cannot be read, or if it names a quantization that transformers would leave out in silence.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # of every class: what is wrong is in the file
        raise UserError(f"model.name = {source} cannot be loaded: {first_line(error)}") from None
    _check_quantization(source, config)
    return config


def model_class(source: str, config: Any) -> Any:
    """Find the class of a causal LM with that config. Raises UserError if transformers has none."""
    try:
        return AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise UserError(
            f"model.name = {source} cannot be loaded: {config.model_type} is not a causal language model; choose one that is"
        ) from None


def choose_attention(kind: Any, wanted: str) -> tuple[str, list[str]]:
    """Return the attention that a class of models can compute, and a note if it is not the one that was wanted."""
    if wanted == "sdpa" and not kind._supports_sdpa:
        return "eager", [f"{kind.__name__} cannot compute its attention by sdpa; model.attention is eager"]
    return wanted, []


def load_pretrained(source: str, revision: str | None, dtype: torch.dtype, attention: str) -> tuple[Any, list[str]]:
    """Load a causal LM and what is to be reported about its weights.

    Raises UserError if it cannot be loaded, or if a tensor of the model is not in its files or has another shape there:
    transformers would draw it at random.
    """
    attention, notes = choose_attention(model_class(source, load_config(source, revision)), attention)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except Exception as error:
        raise UserError(f"model.name = {source} cannot be loaded: {first_line(error)}") from None
    name = type(model).__name__
    mismatched = [
        f"{key} of shape {_shape(stored)} for {_shape(needed)}"
        for key, stored, needed in sorted(loading["mismatched_keys"])
    ]
    wrong = _named("{} missing", loading["missing_keys"]) + _named("{} of another shape", mismatched)
    if wrong:
        raise UserError(
            f"the weights of {source} are not those of its config: of {name}'s tensors, {' and '.join(wrong)}, which would be "
            "random numbers; fetch config.json and the weights of the same model"
        )
    unexpected = _named("{} not used", loading["unexpected_keys"])
    notes += [f"{source}: of the tensors in its files, {text}: {name} has no such weights" for text in unexpected]
    return model, notes


def load_tokenizer(source: str, revision: str | None) -> Any:
    """Load the tokenizer of a model. Raises UserError if it cannot be, and for a folder that is not a whole model."""
    if Path(source).is_dir():
        names = {path.name for path in Path(source).iterdir()}
        if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"}:
            raise UserError(f"the model folder {source} has no tokenizer; copy the tokenizer's files into it")
        if "config.json" not in names:
            raise UserError(f"the model folder {source} has no config.json, so it is not a Hugging Face model")
        if not any(name.endswith((".safetensors", ".bin")) for name in names):
            raise UserError(f"the model folder {source} has no weights (*.safetensors)")
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"model.name = {source} cannot be loaded: {first_line(error)}") from None


def _check_quantization(source: str, config: Any) -> None:
    """Raise UserError if the weights are quantized in a way that transformers does not know."""
    for part in (config, config.get_text_config()):
        quantization = getattr(part, "quantization_config", None)
        if quantization is None:
            continue
        values = quantization if isinstance(quantization, dict) else quantization.to_dict()
        try:
            known = AutoHfQuantizer.supports_quant_method(values)
        except (ValueError, AttributeError):
            known = False
        if not known:
            raise UserError(
                f"the weights of {source} are quantized by {values.get('quant_method')!r}, which the installed transformers "
                "does not know; use the model's weights in float32 or bfloat16"
            )


def _named(sentence: str, keys: Collection[str]) -> list[str]:
    """Put the number of keys and the names of a few of them in the sentence, or return nothing without any."""
    if not keys:
        return []
    names = sorted(keys)
    more = ", …" if len(names) > NAMED_KEYS else ""
    counted = f"{len(names)} {'is' if len(names) == 1 else 'are'}"
    return [f"{sentence.format(counted)} ({', '.join(names[:NAMED_KEYS])}{more})"]


def _shape(size: Any) -> str:
    return "×".join(map(str, size))
