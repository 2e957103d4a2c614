"""`--dry-run` reports a wrong input with the same sentence as a real start, and neither leaves a file behind."""

import json
from pathlib import Path

import pytest
from commands import assert_error, sspo

from sspo_cli.config import TinyModelOptions
from sspo_cli.errors import UserError
from sspo_cli.policy.tiny import tiny_model, tiny_tokenizer

SMALL = """
steps: 1
model: {tiny: {hidden_size: 16, heads: 1, layers: 1, intermediate_size: 16}}
rollout: {prompts: 2, group_size: 2, max_new_tokens: 8}
cold_start: {steps: 0}
tasks: [{name: arithmetic, limit: 20}]
evaluation: {benchmarks: []}
"""
ROW = json.dumps({"question": "1+1", "answer": "2"}) + "\n"
FILES = {
    "small.yaml": SMALL,
    "sweep.yaml": "grid: {steps: [1, 2]}",
    "one.jsonl": ROW,
    "half.jsonl": ROW + '{"question": "1+2"}\n',
    "empty.jsonl": "",
    "broken.jinja": "{{ nothing.at.all }}",
    "mine.py": "def straight(log_ratio, tau):\n    return log_ratio\n",
    "file": "",
}


def save_models(place: Path) -> None:
    """Save model folders with a wrong config or damaged weights, which only loading the weights would reveal."""
    tiny, tokenizer = TinyModelOptions(hidden_size=16, heads=1, layers=1), tiny_tokenizer()
    for name, change in {"wide": {"hidden_size": 32}, "act": {"hidden_act": "nosuch"}, "cut": {}, "shards": {}}.items():
        folder = place / "models" / name
        tiny_model(tiny, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
    weights = place / "models" / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shards = place / "models" / "shards"
    (shards / "model.safetensors").rename(shards / "part.safetensors")
    (shards / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "part.safetensors", "b": "lost.safetensors"}}'
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with files of all kinds, and a run named `taken`."""
    place = tmp_path_factory.mktemp("place")
    for name, content in FILES.items():
        (place / name).write_text(content)
    save_models(place)
    (place / "finished").mkdir()
    for name in ("config.json", "status.json"):
        (place / "finished" / name).write_text("{}")
    (place / "runs" / "taken").mkdir(parents=True)
    (place / "runs" / "taken" / "notes.txt").write_text("mine")
    return place


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-s", "prompt=think-anser"], "did you mean think-answer?"),
        (["-s", "device=cuda:7"], "device = cuda:7 is not available here"),
        (["-s", "tasks=[half.jsonl]"], "half.jsonl, line 2"),
        (["-s", "tasks=[empty.jsonl]"], "no problems in split train of empty.jsonl"),
        (["-s", "tasks=[{name: arithmetic, split: dev}]"], "has no split dev"),
        (["-s", "evaluation.benchmarks=[gone.jsonl]"], "gone.jsonl does not exist"),
        (["-s", "evaluation.validation=999"], "evaluation.validation = 999 would hold out"),
        (["-s", "tasks=[one.jsonl]", "-s", "cold_start.steps=2"], "no worked demonstrations"),
        (["-s", "cold_start={steps: 2, tasks: [gone.jsonl]}"], "gone.jsonl does not exist"),
        (["-s", "rollout.max_new_tokens=2000"], "the model's context is 1024"),
        (["--gate", "mine:straight"], "breaks condition (iii)"),
        (["-s", "reward.function=mine:nothing"], "has no function nothing"),
        (["-s", "rollout.engine=vllm"], "rollout.engine = vllm cannot be used"),
        (["-s", "rollout.vllm={server: 'http://127.0.0.1:9', exchange: x}"], "does not answer"),
        (["-s", "model.kernels=liger"], "model.kernels = liger needs"),
        (["-s", "model.attention=flash_attention_2"], "needs flash-attn"),
        (["-s", "model.lora.targets=[nowhere]"], "has no such layer"),
        (["-s", "model.name=no/model"], "model.name = no/model cannot be loaded"),
        (["-s", "chat.template=broken.jinja"], "the chat template refuses"),
        (["-s", "model.name=models/wide"], "the weights of models/wide do not match its config.json"),
        (["-s", "model.name=models/act"], "model.name = models/act cannot be loaded: KeyError: 'nosuch'"),
        (["-s", "model.name=models/cut"], "model.name = models/cut cannot be loaded: SafetensorError"),
        (["-s", "model.name=models/shards"], "model.name = models/shards cannot be loaded"),
        (["-s", "wandb.mode=online"], "needs a login at wandb"),
        (["-s", "wandb={mode: offline, project: a/b}"], "wandb refuses its options: Invalid project name 'a/b'"),
        (["-s", "wandb={mode: offline, tags: ['']}"], "wandb.tags is not valid: Tag at index 0 is empty"),
        (["-c", "sweep.yaml"], "is a sweep file: it has grid; run it with `sspo sweep -c sweep.yaml`"),
        (["--run", "taken"], "run runs/taken exists"),
        (["--runs-dir", "file/runs"], "cannot create file/runs/new: Not a directory"),
        (["--runs-dir", "finished/runs"], "finished/runs/new would be in the folder of run "),
        (["--from", "taken"], "there is no run taken"),
    ],
)
def test_a_dry_run_says_what_the_start_says_and_neither_leaves_anything(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
):
    monkeypatch.chdir(place)
    monkeypatch.setenv("NETRC", str(place / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    before = sorted(path for path in place.rglob("*") if path.name != "__pycache__" and path.suffix != ".pyc")
    given = ["train", "-c", "small.yaml", "--run", "new", *words]
    start, dry = sspo(*given), sspo(*given, "--dry-run")
    assert_error(start, said)
    assert (dry.returncode, dry.stderr) == (start.returncode, start.stderr)
    assert sorted(path for path in place.rglob("*") if path.name != "__pycache__" and path.suffix != ".pyc") == before


def test_a_run_whose_weights_are_refused_leaves_nothing_either(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither the new folder of runs nor the files of wandb remain."""

    def refuse(*_: object, **__: object) -> None:
        raise UserError("the weights are not finite")

    monkeypatch.chdir(place)
    monkeypatch.setattr("sspo_cli.session.check_model", refuse)
    done = sspo("train", "-c", "small.yaml", "--runs-dir", "other/runs", "-s", "wandb.mode=offline")
    assert done.stderr == "sspo: the weights are not finite\n"
    assert not (place / "other").exists()


def test_commands_point_to_one_another_for_the_other_s_file(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    assert_error(
        sspo("sweep", "-c", "small.yaml"), "holds the options of one run; start it with `sspo train -c small.yaml`"
    )
    before = sorted(place.iterdir())
    (place / "bad.yaml").write_text("options: {tasks: [gone.jsonl]}")
    for more in ([], ["--dry-run"]):
        assert_error(sspo("sweep", "-c", "bad.yaml", *more), "gone.jsonl does not exist")
    (place / "bad.yaml").unlink()
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.kernels=compiled", "model.kernels = compiled does not support several ranks"),
        ("model={weights: bfloat16}", "model.weights = bfloat16 needs a single process"),
        ("rollout.engine=vllm", "rollout.engine = vllm samples in one process, but this run has 8 ranks"),
        ("device=cuda:1", "device = cuda:1 is a single GPU, but each rank needs its own"),
    ],
)
def test_what_several_ranks_refuse_is_refused_for_other_machines_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, word: str, said: str
):
    monkeypatch.chdir(place)
    more = ["-s", word, "-s", "optimizer.eight_bit=true", "--nproc", "8"]
    assert_error(sspo("train", "-c", "small.yaml", *more, "--dry-run", "--device-memory", "85"), said)
    assert_error(sspo("sweep", "-c", "sweep.yaml", *more, "--dry-run", "--ray", "auto"), said)
