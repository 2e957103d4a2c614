"""Loading of models and tokenizers. A model is refused unless every tensor comes from its files."""

import json
import re
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers.auto import AutoHfQuantizer

from sspo_cli import ranks
from sspo_cli.errors import UserError, border
from sspo_cli.policy.sharded_loading import read_in_parts, whole_shapes

NAMED_KEYS = 3  # most tensors named in a message
# Largest plausible values in a model's config; larger ones are damage.
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
PATH_STARTS = ("/", "./", "../", "~")  # of a folder; names on the hub are `name` or `owner/name`
WEIGHTS = "model.safetensors"
MODEL_FILES = (".json", ".model", ".safetensors", ".bin")


def load_config(source: str, revision: str | None = None) -> Any:
    """Read the config of a model, without its weights.

    Raises UserError if it cannot be read, if its sizes are implausible, or if transformers would silently ignore its
    quantization.
    """
    with _loading(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    _check_sizes(source, config)
    _check_quantization(source, config)
    return config


def config_value(config: Any, name: str) -> Any:
    """Return a value of a config, or None if it is missing. For a value that varies by layer, return the most frequent value."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # raised by transformers for values that vary by layer
        return vars(config).get(name)


def model_class(source: str, config: Any) -> Any:
    """Find the class of a causal LM with this config. Raises UserError if transformers has none."""
    try:
        return AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise UserError(
            f"model.name = {source} cannot be loaded: {config.model_type} is not a causal language model; choose one that is"
        ) from None


def choose_attention(kind: Any, wanted: str) -> tuple[str, list[str]]:
    """Return an attention implementation that a class of models supports, and a note if it is not `wanted`."""
    if wanted == "sdpa" and not kind._supports_sdpa:
        return "eager", [f"{kind.__name__} cannot compute its attention by sdpa; model.attention is eager"]
    return wanted, []


def load_pretrained(
    source: str, revision: str | None, dtype: torch.dtype, attention: str, *, in_parts: bool = False
) -> tuple[Any, list[str]]:
    """Load a causal LM; also return notes about its weights.

    in_parts  True if each rank reads only its rows of the weights, for `shard` (see `sharded_loading`)

    Raises UserError if it cannot be loaded, if weights to be read in parts are quantized, or if a tensor of the model is missing
    in its files or has another shape there, because transformers would initialize it randomly.
    """
    kind = model_class(source, load_config(source, revision))
    attention, notes = choose_attention(kind, attention)
    loaded: list[Any] = []

    def load() -> list[dict[str, Any]]:
        with _loading(source):
            loaded[:] = AutoModelForCausalLM.from_pretrained(
                source,
                revision=revision,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        return [loaded[1]]

    if in_parts:
        with read_in_parts(kind) as reasons:
            of_ranks = ranks.gather(load)
        notes += [f"each rank reads {source} whole into the memory of its machine: {reason}" for reason in reasons]
    else:
        of_ranks = load()
    model = loaded[0]
    if in_parts and config_value(model.config, "quantization_config"):
        raise UserError(
            f"the weights of {source} are quantized and stay so, which is for one process: they cannot be sharded over "
            f"{ranks.size()} ranks; use the model's weights in float32 or bfloat16"
        )
    missing, unexpected = (
        {key for info in of_ranks for key in info[name]} for name in ("missing_keys", "unexpected_keys")
    )
    name = type(model).__name__
    _refuse_other_weights(source, name, missing, whole_shapes(model, of_ranks, loaded[1]))
    unused = _named("{} not used", unexpected)
    notes += [f"{source}: of the tensors in its files, {text}, because {name} has no such weights" for text in unused]
    return model, notes


def check_stored_weights(source: str, model: Any) -> None:
    """Compare a model without weights with the headers of the safetensors files in its folder, without reading the weights.

    Does nothing if `source` is not a folder with such files, or if its weights are quantized. Tensors that the model converts
    while it is loaded have other names in the files, so missing tensors are reported only if each stored one has a name of the
    model. Raises UserError in the same cases as `load_pretrained`.
    """
    folder = Path(source)
    if not folder.is_dir() or getattr(model.config, "quantization_config", None) is not None:
        return
    stored: dict[str, list[int]] = {}
    with _loading(source):
        for file in _weight_files(folder):
            with safe_open(file, "pt") as content:
                names = content.keys()
                stored |= {key: content.get_slice(key).get_shape() for key in names}
    needed = {key: list(weight.shape) for key, weight in model.named_parameters()}
    mismatched = [
        (key, stored[key], needed[key]) for key in sorted(stored.keys() & needed.keys()) if stored[key] != needed[key]
    ]
    is_by_name = bool(stored) and stored.keys() <= model.state_dict().keys()
    missing = needed.keys() - stored.keys() - model.all_tied_weights_keys.keys() if is_by_name else ()
    optional = model._keys_to_ignore_on_load_missing or ()
    missing = [key for key in missing if not any(re.search(pattern, key) for pattern in optional)]
    _refuse_other_weights(source, type(model).__name__, missing, mismatched)


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers reads in a folder; none if it has other files of weights."""
    if (whole := folder / WEIGHTS).is_file():
        return [whole]
    if not (index := folder / f"{WEIGHTS}.index.json").is_file():
        return []
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _refuse_other_weights(
    source: str, name: str, missing: Collection[str], mismatched: Sequence[tuple[str, list[int], list[int]]]
) -> None:
    """Raise UserError for tensors that are missing in the files of the model class `name`, or have another shape there."""
    shapes = [f"{key} of shape {_shape(stored)} for {_shape(needed)}" for key, stored, needed in mismatched]
    if wrong := _named("{} missing", missing) + _named("{} of another shape", shapes):
        raise UserError(
            f"the weights of {source} do not match its config.json: of {name}'s tensors, {' and '.join(wrong)}, which would be "
            "initialized randomly; download config.json and weights of the same model"
        )


def load_tokenizer(source: str, revision: str | None) -> Any:
    """Load the tokenizer of a model. Raises UserError if this fails, and for an incomplete model folder."""
    if Path(source).is_dir():
        paths = [path for path in Path(source).iterdir() if path.suffix in MODEL_FILES]
        if folders := [path for path in paths if not path.is_file()]:
            raise UserError(f"{folders[0]} is not a file, so the model cannot be loaded; copy it again")
        names = {path.name for path in paths}
        if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"}:
            raise UserError(f"the model folder {source} has no tokenizer; copy the tokenizer's files into it")
        if "config.json" not in names:
            raise UserError(
                f"the model folder {source} has no config.json, which a Hugging Face model needs; copy it there"
            )
        if not any(name.endswith((".safetensors", ".bin")) for name in names):
            raise UserError(f"the model folder {source} has no weights; copy its *.safetensors files there")
    with _loading(source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def _loading(source: str) -> AbstractContextManager[None]:
    """Convert exceptions that transformers raises for broken files to UserError, except out-of-memory errors.

    Raises UserError if the source is a path, but there is no such folder.
    """
    if (source.startswith(PATH_STARTS) or source.count("/") > 1) and not Path(source).is_dir():
        raise UserError(
            f"model.name = {source}: there is no such folder; give a model's folder, or its name on the hub"
        )
    return border(f"model.name = {source} cannot be loaded", torch.OutOfMemoryError, MemoryError)


def _check_sizes(source: str, config: Any) -> None:
    """Raise UserError for implausible sizes, with which building the model would fail or hang."""
    for name, largest in LARGEST_SIZES.items():
        size = config_value(config.get_text_config(), name)
        sizes = size if isinstance(size, list | tuple) else [] if size is None else [size]  # some vary by layer
        if not all(type(size) is int and 0 <= size <= largest for size in sizes):
            raise UserError(f"the config of {source} has {name} = {size!r}; it must be from 1 to {largest:,}")


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
    """Return `sentence` with the number of keys and a few of them filled in, or an empty list if `keys` is empty."""
    if not keys:
        return []
    names = sorted(keys)
    more = ", …" if len(names) > NAMED_KEYS else ""
    counted = f"{len(names)} {'is' if len(names) == 1 else 'are'}"
    return [f"{sentence.format(counted)} ({', '.join(names[:NAMED_KEYS])}{more})"]


def _shape(size: Any) -> str:
    return "×".join(map(str, size))
