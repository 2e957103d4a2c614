"""The embedded default: a character-level tokenizer and a Qwen2-shaped model of about 0.2 M parameters."""

import string

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from sspo_cli.config import TinyModelOptions

CONTEXT = 1024
INITIALIZER_RANGE = 0.08  # at Qwen2's 0.02 so narrow a model learns worked chains late, or not within the cold start
CHARACTERS = string.printable[:95] + "\n"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL = ("<|pad|>", "<|unknown|>", "<|im_start|>", "<|im_end|>")
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character, with Qwen's chat markup, and one for each tag and role."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    # Like Qwen3's, the tags are tokens of their own, and text rather than markup: decoding keeps them.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in (*TAGS, *ROLES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
    )


def tiny_model(options: TinyModelOptions, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Random weights, drawn from `options.seed` alone."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        intermediate_size=options.intermediate_size,
        initializer_range=INITIALIZER_RANGE,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return Qwen2ForCausalLM(config)
