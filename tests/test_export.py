"""`sspo export`: the exported folder is the trained model and records where it comes from."""

from pathlib import Path

import pytest
import torch
from commands import assert_error, sspo
from ruamel.yaml import YAML
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sspo_cli.config import TinyModelOptions
from sspo_cli.export import export_model
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.tiny import tiny_model, tiny_tokenizer
from sspo_cli.tracking.run_folder import RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of adapters on a small model, with steps that are large enough to change it."""
    runs, tokenizer = tmp_path_factory.mktemp("runs"), tiny_tokenizer()
    model = tiny_model(TinyModelOptions(hidden_size=32, heads=1, layers=1, intermediate_size=32), tokenizer)
    model.save_pretrained(runs / "base-model")
    tokenizer.save_pretrained(runs / "base-model")
    options = {
        "model__name": runs / "base-model",
        "model__lora": "{rank: 4}",
        "prompt": "think-answer",
        "steps": 2,
        "cold_start": "{steps: 3, learning_rate: 0.1, warmup_steps: 0}",
        "rollout": "{prompts: 4, group_size: 4, max_new_tokens: 8}",
        "tasks": "[{name: arithmetic, limit: 40}]",
        "evaluation__benchmarks": "[{name: arithmetic, split: test, limit: 6}]",
    }
    done = sspo("train", "--runs-dir", runs, "--run", "adapted", "--gate", "gumbel", **options)
    assert done.returncode == 0, done.stderr
    return runs


@pytest.fixture(scope="module")
def exported(runs: Path) -> Path:
    done = sspo("export", "adapted", runs / "published", "--runs-dir", runs)
    assert done.returncode == 0, done.stderr
    return runs / "published"


def test_the_merged_model_computes_what_the_adapters_did(runs, exported):
    run = RunFolder.open(runs / "adapted")
    trained = load_policy(run.config.model, torch.device("cpu"), run.checkpoints / "step-2").model
    merged = AutoModelForCausalLM.from_pretrained(exported)
    base = AutoModelForCausalLM.from_pretrained(runs / "base-model")
    tokens = AutoTokenizer.from_pretrained(exported)("1+2-3", return_tensors="pt").input_ids
    with torch.no_grad():
        expected, ours, before = (model(tokens).logits for model in (trained, merged, base))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert (ours - before).abs().max() > 1e-2
    assert not (exported / "adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained(exported).chat_template


def test_merged_weights_are_rounded_once_if_bfloat16_is_asked_for(runs, exported):
    export_model("adapted", runs / "half", None, runs, "bfloat16")
    full, half = load_file(exported / "model.safetensors"), load_file(runs / "half" / "model.safetensors")
    assert full.keys() == half.keys()
    assert all(torch.equal(weight.bfloat16(), half[name]) for name, weight in full.items())
    assert AutoModelForCausalLM.from_pretrained(runs / "half").dtype == torch.bfloat16


def test_the_card_says_what_was_done_and_how_well_it_does(runs, exported):
    head, card = (exported / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    about = YAML(typ="safe").load(head)
    assert (about["base_model"], about["tags"]) == ("base-model", ["sspo", "gumbel"])
    assert "# adapted" in card
    for row in ("| method | sspo |", "| gate | gumbel |", "| weights | adapters of rank 4, merged |"):
        assert row in card
    facts = [line.split(" | ")[0].strip("| `") for line in card.splitlines() if line.startswith("| ")]
    assert [facts.count(name) for name in ("method", "gate", "normalizer")] == [1, 1, 1]
    assert "| data | arithmetic (train, the first 40 problems) |" in card
    assert "> You are a helpful assistant." in card
    (score,) = [row for row in RunFolder.open(runs / "adapted").evaluations() if row["step"] == 2]
    interval = f"{100 * score['low']:.1f} to {100 * score['high']:.1f} %"
    assert (
        f"| arithmetic | 2 | {100 * score['pass_at_1']:.1f} % | {interval} | 6 | 1 | 0.0 | 8 | think-answer |" in card
    )


def test_what_cannot_be_exported_leaves_nothing(runs, exported, monkeypatch):
    before = sorted(runs.rglob("*"))
    assert_error(sspo("export", "adapted", exported, "--runs-dir", runs), f"{exported} exists; name a new folder")
    assert_error(sspo("export", "nowhere", runs / "new", "--runs-dir", runs), "there is no run nowhere in")
    step = sspo("export", "adapted", runs / "new", "--runs-dir", runs, "--checkpoint", 7)
    assert_error(step, "has no checkpoint 7; use last, best or one of its steps: 2")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuse)
    assert_error(
        sspo("export", "adapted", runs / "new", "--runs-dir", runs), "new cannot be written: [Errno 28] No space left"
    )
    assert sorted(runs.rglob("*")) == before
