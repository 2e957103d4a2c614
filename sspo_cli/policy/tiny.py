"""The embedded default: a character-level tokenizer and a Qwen2-shaped model of about 0.2 M parameters."""

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from sspo_cli.config import TinyModelOptions

INITIALIZER_RANGE = 0.08  # Qwen2's 0.02 is for widths of thousands
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = ("<think>", "</think>", "<answer>", "</answer>", "system", "user", "assistant")
ACTIONS = ("<execute>", "</execute>", "<solution>", "</solution>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(options: TinyModelOptions | None = None) -> Qwen2Tokenizer:
    """Make Qwen2's byte-level tokenizer without merges, with one token per ASCII character and Qwen's chat markup.

    With `options.action_tags`, also add a token for each tag of an episode's actions.

    It is a Qwen2 tokenizer because `AutoTokenizer` reads every tokenizer in a Qwen2 model's folder as one, and silently drops
    what that class does not support.
    """
    options = options or TinyModelOptions()
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *characters))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=options.context,
    )
    text = TEXT + ACTIONS if options.action_tags else TEXT
    # As in Qwen3, each tag is a single token, but plain text and not a special token.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in text])
    return tokenizer


def tiny_model(
    options: TinyModelOptions, tokenizer: Qwen2Tokenizer, dtype: torch.dtype = torch.float32
) -> Qwen2ForCausalLM:
    """Make a model with random weights of this dtype, drawn from `options.seed` alone."""
    config = tiny_config(options, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():  # not the rotary frequencies, which stay in float32 in a loaded model too
        parameter.data = parameter.data.to(dtype)
    return model


def tiny_config(options: TinyModelOptions, tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    """Make the config of the tiny model."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        intermediate_size=options.intermediate_size,
        initializer_range=INITIALIZER_RANGE,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
