"""Configs of small models with the same structure as a given model: fewer layers and smaller widths, otherwise unchanged."""

import copy
import re
from collections.abc import Collection, Iterator
from typing import Any

from transformers import PreTrainedConfig

from sspo_cli.policy.pretrained import config_value

WORDS, FFN_WIDTH, HEADS, EXPERTS, LAYERS = 96, 32, 2, 4, 4
WIDTH, RANK, STATE = 64, 32, 16  # model width if there are no heads, rank of low-rank projections, state width
FIRST_TOKEN = 8  # smaller ids may be special tokens
LAYER_COUNTS = re.compile(r"(num_hidden|num_decoder|num_encoder|decoder|encoder|num|n)_layers?|n_layer|num_blocks")
# Options that list the layers of a special kind.
LAYER_NUMBERS = re.compile(r"\w*layers|\w*layer_(indices|ids)|\w*_idxs")
FFN = re.compile(
    r".*(intermediate|ffn|inner|mlp|feed_?forward|block_ff)\w*(size|dim|hidden)|n_inner|.*ffn_dim|d_ff|ffn_hidden"
)
EXPERT_COUNTS = re.compile(r"(num|n|moe_num)_?\w*experts|num_moe_experts")
HEAD_COUNTS = re.compile(r"(num_attention|decoder_attention|encoder_attention|num|n)_heads?|n_head")
KEY_HEAD_COUNTS = re.compile(r"(num_key_value_heads|num_kv_heads|n_head_kv|n_kv_heads|multi_query_group_num)")
WIDTHS = re.compile(r"hidden_size|n_embd|d_model|dim|word_embed_proj_dim|emb(ed|edding)?_(dim|size)")
# Numbers of heads in recurrent layers. There are as many value heads as key heads, or a multiple.
STATE_HEADS = re.compile(r"linear_num_(key_)?heads")
STATE_VALUE_HEADS = re.compile(r"linear_num_value_heads|mamba_num_heads")
TOKENS = re.compile(r".*(token_id|token_index|token_ids)s?")
SWITCHES = re.compile(
    r"\w*(window|chunk)(_size)?|original_max_position_embeddings|attention_window\w*"
    r"|index_topk|indexer_budget|\w*block_size|\w*_compressed\w*"
)
SWITCHED, NEVER = 8, 64  # lengths in tokens: some rows are longer than the first, none than the second


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a small copy of a config: about one layer of each kind, two heads, a small vocabulary and few experts."""
    small = copy.deepcopy(config)
    for part in _parts(small):
        _shrink_part(part)
    return small


def switches(config: PreTrainedConfig) -> dict[str, int]:
    """Return {option: length} of the config's switches: lengths at which the computation changes, such as sliding windows."""
    found: dict[str, int] = {}
    for part in _parts(config):
        for values in _dictionaries(vars(part)):
            for name, value in values.items():
                if SWITCHES.fullmatch(name) and type(value) is int and value > 1:
                    found[name] = min(value, found.get(name, value))
    return found


def move_switches(config: PreTrainedConfig, names: Collection[str]) -> PreTrainedConfig:
    """Return a copy of the config in which only the switches in `names` affect the rows of a check.

    The switches in `names` are set to SWITCHED, which some rows exceed. All other switches are raised to at least NEVER, which
    no row reaches.
    """
    moved = copy.deepcopy(config)
    for part in _parts(moved):
        for values in _dictionaries(vars(part)):
            for name, value in list(values.items()):
                if SWITCHES.fullmatch(name) and type(value) is int and value > 1:
                    values[name] = SWITCHED if name in names else max(value, NEVER)
    return moved


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def _dictionaries(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a config's dictionary and all nested dictionaries, such as the rotary parameters of each kind of layer."""
    yield values
    for value in list(values.values()):
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            yield from _dictionaries(value)


def _shrink_part(part: PreTrainedConfig) -> None:
    values = vars(part)
    layers = _first(part, ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"))
    if layers:
        _shrink_layers(values, layers)
    _shrink_widths(part)
    _set(values, FFN, lambda value: FFN_WIDTH)
    _set(values, re.compile(r"\w*per_tok\w*|\w*top_?k|num_selected_experts|moe_k"), lambda value: min(value, 2))
    _set(values, EXPERT_COUNTS, lambda value: min(value, EXPERTS))
    _set(values, re.compile(r"n_group|num_expert_group|topk_group|(mamba_)?n_groups|mamba_ngroups"), lambda value: 1)
    _set(values, re.compile(r"(mamba_)?chunk_size"), lambda value: min(value, 16))  # kernels pad to it
    _set(values, re.compile(r"vocab_size\w*|\w*_vocab_size"), lambda value: WORDS)
    _set(values, re.compile(r"\w*lora_rank"), lambda value: min(value, RANK))
    _set(values, TOKENS, lambda value: value if value < FIRST_TOKEN else 0)
    for name in ("eos_token_id", "bos_token_id"):
        if isinstance(values.get(name), list):
            values[name] = 0
    values.pop("quantization_config", None)


def _shrink_widths(part: PreTrainedConfig) -> None:
    """Reduce the number of attention heads to two, and the widths that depend on it in proportion."""
    values = vars(part)
    heads = _first(part, ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"))
    key_heads = _first(part, ("num_key_value_heads", "num_kv_heads", "n_head_kv"))
    width = _first(part, ("hidden_size", "n_embd", "d_model", "dim", "emb_dim")) or WIDTH
    head_width = config_value(part, "head_dim") or (width // heads if heads else None)
    small = HEADS * head_width if head_width else WIDTH
    if heads:
        # Keep the kind of attention: each query head has its own key head, or several query heads share a key head.
        shared = key_heads is not None and key_heads < heads
        _set(values, KEY_HEAD_COUNTS, lambda value: 1 if shared else HEADS)
        _set(values, HEAD_COUNTS, lambda value: HEADS)
    attention_width = _first(part, ("attention_hidden_size",))
    if attention_width:  # a multiple of the model's width
        values["attention_hidden_size"] = attention_width // width * small
        if "attention_head_dim" in values:
            values["attention_head_dim"] = values["attention_hidden_size"] // HEADS
    _set(values, WIDTHS, lambda value: small)
    expand, state_width = config_value(part, "mamba_expand"), _first(part, ("mamba_d_head", "mamba_headdim"))
    if values.get("mamba_d_ssm") and state_width:  # a width that is independent of the model's width
        values["mamba_n_heads"], values["mamba_d_ssm"] = HEADS, HEADS * state_width
    elif expand and state_width:
        for name in ("mamba_n_heads", "n_mamba_heads"):
            if name in values:
                values[name] = max(1, int(expand * small) // state_width)
    _set(values, re.compile("mamba_d_state|ssm_state_size|state_size"), lambda value: min(value, STATE))
    if {"state_size", "expand", "num_heads"} <= values.keys():  # a state space model without attention
        values["num_heads"] = int(values["expand"] * HEADS)
    _set(values, STATE_HEADS, lambda value: HEADS)
    _set(values, STATE_VALUE_HEADS, lambda value: 2 * HEADS)


def _shrink_layers(values: dict[str, Any], layers: int) -> None:
    """Keep a layer of each kind that the config's lists distinguish, and shorten periods of layers to two."""
    per_layer = {name: value for name, value in values.items() if isinstance(value, list) and len(value) == layers > 1}
    numbers = {
        name: value
        for name, value in values.items()
        if LAYER_NUMBERS.fullmatch(name) and isinstance(value, list) and name not in per_layer
    }
    heterogeneity = values.get("_heterogeneity_spec")  # values that differ between layers
    overrides = heterogeneity.per_layer_overrides if heterogeneity else {}
    kinds: dict[str, int] = {}
    for index in range(layers):
        kind = [value[index] for value in per_layer.values()], [index in value for value in numbers.values()]
        kinds.setdefault(str((kind, overrides.get(index))), index)
    chosen = sorted(
        [*kinds.values(), *(index for index in range(layers) if index not in kinds.values())][
            : max(2, min(len(kinds), LAYERS))
        ]
    )
    for name, value in per_layer.items():
        values[name] = [value[index] for index in chosen]
    for name, value in numbers.items():
        values[name] = [place for place, index in enumerate(chosen) if index in value]
    if heterogeneity:
        heterogeneity.per_layer_overrides = {
            place: overrides[index] for place, index in enumerate(chosen) if index in overrides
        }
        for changed in heterogeneity.per_layer_overrides.values():
            _set(changed, re.compile(f"{KEY_HEAD_COUNTS.pattern}|{HEAD_COUNTS.pattern}"), lambda value: HEADS)
            _set(changed, re.compile(r"\w*lora_rank"), lambda value: min(value, RANK))
    pattern = values.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) == layers:
        letters = dict.fromkeys(pattern)
        values["hybrid_override_pattern"] = "".join(letters) if len(letters) > 1 else pattern[:2]
        chosen = list(range(len(values["hybrid_override_pattern"])))
    for name in ("attn_layer_period", "expert_layer_period", "attn_layer_offset", "expert_layer_offset"):
        if name in values:
            values[name] = 2 if name.endswith("period") else 1
    _set(values, LAYER_COUNTS, lambda value: len(chosen))
    _set(
        values, re.compile("first_k_dense_replace|num_kv_shared_layers|max_window_layers"), lambda value: min(value, 1)
    )


def _set(values: dict[str, Any], names: re.Pattern[str], change: Any) -> None:
    for name, value in values.items():
        if names.fullmatch(name) and type(value) is int and value > 0:
            values[name] = change(value)
        elif names.fullmatch(name) and isinstance(value, list) and value and all(type(item) is int for item in value):
            values[name] = [change(item) for item in value]


def _first(part: PreTrainedConfig, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if type(value := config_value(part, name)) is int and value > 0), None)
