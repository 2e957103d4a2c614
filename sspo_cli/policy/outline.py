"""Make a policy without its weights, to check everything that does not depend on them before a run begins."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2ForCausalLM

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, reason
from sspo_cli.policy.adapters import add_adapters
from sspo_cli.policy.kernels import use_liger
from sspo_cli.policy.model import Policy, check_tokenizer, compute_dtype, source_of
from sspo_cli.policy.pretrained import check_stored_weights, choose_attention, load_config, load_tokenizer, model_class
from sspo_cli.policy.tiny import tiny_config, tiny_tokenizer


def outline_policy(
    options: ModelOptions, device: torch.device, folder: Path | None = None, chat_template: str | None = None
) -> Policy | None:
    """Make the policy that `load_policy` would load, with tensors on torch's meta device, which have shapes and no memory.

    Returns None if the model's code cannot run without values of weights. Raises UserError in the same cases as
    `load_policy`, except for errors that only the weights reveal.
    """
    source, _ = source_of(options, folder)
    if source is None:
        tokenizer: Any = tiny_tokenizer(options.tiny)
    else:
        tokenizer = load_tokenizer(source, options.revision if source == options.name else None)
    check_tokenizer(tokenizer, source, chat_template)
    try:
        model = _without_weights(options, source, tokenizer)
    except UserError:
        raise
    except (KeyError, ValueError) as error:  # for an activation, for example, that the model's code does not know
        raise UserError(f"model.name = {source} cannot be loaded: {reason(error)}") from None
    except Exception:  # raised by the model's code, which may need values of tensors
        return None
    if options.kernels == "liger":
        use_liger(model, device)
    if options.lora:
        model = add_adapters(model, options.lora, None)
    return Policy(model, tokenizer, device, compute_dtype(options, device))


def _without_weights(options: ModelOptions, source: str | None, tokenizer: Any) -> Any:
    with torch.device("meta"):
        if source is None:
            return Qwen2ForCausalLM(tiny_config(options.tiny, tokenizer))
        revision = options.revision if source == options.name else None
        config = load_config(source, revision)
        kind = model_class(source, config)
        attention, _ = choose_attention(kind, "sdpa" if options.attention == "flash_attention_2" else options.attention)
        model = kind._from_config(config, attn_implementation=attention)
    check_stored_weights(source, model)
    with suppress(OSError):  # if there is no generation config, the values of the model's config remain
        model.generation_config = GenerationConfig.from_pretrained(source, revision=revision)
    return model
