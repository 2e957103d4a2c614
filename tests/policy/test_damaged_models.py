"""A model folder that cannot be used is reported in one sentence, whatever the libraries raise."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sspo_cli.config import ModelOptions, TinyModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.model import load_policy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny = TinyModelOptions(hidden_size=16, layers=1, heads=1, intermediate_size=16)
    load_policy(ModelOptions(tiny=tiny), CPU).save(folder)
    return folder


CONFIGS: dict[str, Any] = {
    "unknown activation": {"hidden_act": "swoosh"},
    "unknown rope type": {"rope_parameters": {"rope_type": "helix", "rope_theta": 1e4}},
    "rope that is a list": {"rope_parameters": [1]},
    "unknown model type": {"model_type": "sspo"},
    "model type that is a list": {"model_type": ["qwen2"]},
    "negative size": {"hidden_size": -16},
    "no heads": {"num_attention_heads": 0},
    "negative layers": {"num_hidden_layers": -1},
    "10^9 layers": {"num_hidden_layers": 10**9},
    "text for a size": {"intermediate_size": "wide"},
    "true for a size": {"vocab_size": True},
    "negative vocabulary": {"vocab_size": -5},
}
CONTENTS: dict[str, tuple[str, bytes]] = {
    "config is a list": ("config.json", b"[]"),
    "config is cut": ("config.json", b'{"model_type": '),
    "config is binary": ("config.json", b"\xff\xfe\x00"),
    "config is nested deeply": ("config.json", b"[" * 5000 + b"]" * 5000),
    "tokenizer is cut": ("tokenizer.json", b'{"version": '),
    "tokenizer is a list": ("tokenizer.json", b"[]"),
    "tokenizer without a model": ("tokenizer.json", b'{"version": "1.0"}'),
    "tokenizer of unknown type": ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Telepathy"}}'),
    "tokenizer config is a list": ("tokenizer_config.json", b"[]"),
    "weights are text": ("model.safetensors", b"weights"),
    "weights are empty": ("model.safetensors", b""),
}


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_no_model_has(saved: Path, tmp_path: Path, change: dict[str, Any]):
    folder = shutil.copytree(saved, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    refuse(folder)


@pytest.mark.parametrize(("file", "content"), CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_file(saved: Path, tmp_path: Path, file: str, content: bytes):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / file).write_bytes(content)
    refuse(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_where_a_file_should_be(saved: Path, tmp_path: Path, file: str):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / file).unlink()
    (folder / file).mkdir()
    refuse(folder)


class Harm:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("harm"),)


def test_weights_that_hold_code_are_refused_and_nothing_is_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for content in (Harm(), [Harm()]):
        torch.save({"weight": content}, folder / "pytorch_model.bin")
        refuse(folder)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": content}))
        refuse(folder)
    assert not (tmp_path / "harm").exists()


def refuse(folder: Path) -> None:
    with pytest.raises(UserError) as raised:
        load_policy(ModelOptions(name=str(folder)), CPU).check_logits()
    assert len(str(raised.value)) < 1000
    assert "\n" not in str(raised.value)
