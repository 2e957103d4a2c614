"""The memory estimate: parameters counted exactly, activations compared with a tracker of allocations."""

import re
import weakref
from pathlib import Path

import pytest
import torch
from commands import assert_error, sspo
from public_configs import PARAMETERS, write_configs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sspo_cli.config import RunOptions, load_config
from sspo_cli.errors import UserError
from sspo_cli.memory import refuse, stated_device
from sspo_cli.memory.estimate import PROMPT, Device, estimate
from sspo_cli.memory.shape import ModelShape, read_shape
from sspo_cli.objectives import build_objective
from sspo_cli.policy.batch import collate
from sspo_cli.policy.learner import accumulate_gradient
from sspo_cli.policy.model import load_policy
from sspo_cli.policy.optimizer import adamw
from sspo_cli.policy.tiny import tiny_tokenizer
from sspo_cli.sweep import load_sweep
from sspo_cli.types import Completion, Group, Problem, Prompt, Reward

CONFIGS = Path(__file__).parents[1] / "configs"
SWEEPS = CONFIGS / "sweeps"
CPU = torch.device("cpu")
MODELS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3, untied": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32, "tie_word_embeddings": False}),
}
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4}
TOKENS = {"rollout.prompts": 4, "rollout.group_size": 4, "rollout.max_new_tokens": 128, "learning.mu": 2}


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> dict[str, Path]:
    return write_configs(tmp_path_factory.mktemp("public"))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Path]:
    """Make models that are small enough to run, and large enough that their tensors dominate."""
    folders = {}
    for name, (config, model, more) in MODELS.items():
        folders[name] = tmp_path_factory.mktemp("small") / "model"
        sizes = {"vocab_size": 1024, "num_key_value_heads": 2, "tie_word_embeddings": True, **SIZES, **more}
        model(config(**sizes)).save_pretrained(folders[name])
        tiny_tokenizer().save_pretrained(folders[name])
    return folders


def options_of(**changes: object) -> RunOptions:
    return load_config([], [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_exactly_without_weights(public, name):
    shape = read_shape(options_of(model__name=public[name]).model)
    assert shape.parameters == shape.trained == PARAMETERS[name]


def test_adapters_are_counted_as_peft_makes_them(public):
    """LoRA of rank r adds r × (inputs + outputs) to each of the seven linear layers of a Qwen3 layer."""
    options = options_of(model__name=public["Qwen/Qwen3-14B"], model__lora="{rank: 32}")
    hidden, queries, keys, intermediate = 5120, 5120, 1024, 17_408
    of_layer = (hidden + queries) + 2 * (hidden + keys) + (queries + hidden) + 3 * (hidden + intermediate)
    assert read_shape(options.model).trained == 40 * 32 * of_layer


class Peak(TorchDispatchMode):
    """Dispatch mode that records the peak of bytes in live tensors that were created while it was active."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, result)
        return result

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self.alive:
            self.alive[id(storage)] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, id(storage))

    def forget(self, storage: int) -> None:
        self.now -= self.alive.pop(storage)


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj, down_proj]"])
def test_adapters_are_as_many_as_peft_makes(small, targets):
    options = options_of(model__name=small["qwen2"], model__lora=f"{{rank: 8, targets: {targets}}}")
    trained = load_policy(options.model, CPU).parameters
    assert read_shape(options.model).trained == sum(parameter.numel() for parameter in trained)


def measured_peak(options: RunOptions) -> float:
    """Measure the peak bytes of live tensors in a micro-batch's forward and backward pass."""
    policy = load_policy(options.model, CPU)
    group_size, draw = options.rollout.group_size, torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(4, 200, (length,), generator=draw).tolist()

    groups = []
    for number in range(options.rollout.prompts // options.learning.mu):
        made = [ids(options.rollout.max_new_tokens) for _ in range(group_size)]
        completions = [Completion(tokens, [-1.0] * len(tokens), "", truncated=False) for tokens in made]
        prompt = Prompt(Problem(str(number), "", "", "test"), "", ids(PROMPT))
        groups.append(Group(prompt, completions, [Reward(1.0, 0.5, None, "ok")] * group_size))
    batch = collate(groups, torch.randn(len(groups), group_size, generator=draw), mask_truncated=False)
    optimizer = adamw(policy.parameters, (0.9, 0.99), 0.0, eight_bit=False)
    objective = build_objective(method="grpo")

    def learn() -> None:
        accumulate_gradient(policy, objective, batch, torch.ones(len(batch)), options.learning, 1.0, on_policy=True)

    learn()
    optimizer.step()  # makes the moments; the gradients stay, as they do between two micro-batches
    moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    held = [*policy.model.parameters(), *(p.grad for p in policy.parameters), *moments]
    with Peak() as peak:
        learn()
    return sum(tensor.nbytes for tensor in held) + peak.peak


LORA = {"model__lora": "{rank: 8}"}
BFLOAT16, CHECKPOINTED = {"model__dtype": "bfloat16"}, {"model__gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", CHECKPOINTED),
        ("qwen2", LORA | CHECKPOINTED),
        ("qwen3, untied", {}),
        ("qwen3, untied", BFLOAT16 | CHECKPOINTED),
    ],
    ids=str,
)
def test_learning_takes_what_was_estimated(small, kind, changes):
    options = options_of(model__name=small[kind], cold_start__steps=0, **TOKENS, **changes)
    device = Device("cpu", 1e12, bfloat16=False, vllm=False)
    learning, _ = estimate(options, read_shape(options.model), device)
    expected = learning.total - learning.parts["reserve"]
    assert measured_peak(options) == pytest.approx(expected, rel=0.1)  # measured: 0.94 to 1.04 of it


def hardware(file: Path) -> tuple[str, float, int]:
    """Return the device, its gigabytes and the number of ranks that the first line of a config names."""
    first = file.read_text().splitlines()[0]
    found = re.match(r"# Hardware: (a|one|\d+) (CPU|GPU)s? (?:of|with) (\d+) GB", first)
    assert found, f"{file.name} does not name its hardware in its first line"
    count = int(found[1]) if found[1].isdigit() else 1
    assert count == 1 or f"--nproc {count}" in first
    return found[2], float(found[3]), count


def documented(page: str, name: str) -> list[str]:
    """The lines of the tables of a page that begin with a config."""
    lines = (CONFIGS.parent / "docs" / f"{page}.md").read_text().splitlines()
    return [line for line in lines if line.startswith(f"| `{name}.yaml`") and "GB" in line]


def fit(options: RunOptions, device: tuple[str, float, int], public: dict[str, Path]) -> ModelShape:
    kind, gigabytes, count = device
    model = options.model.model_copy(update={"name": str(public[options.model.name])} if options.model.name else {})
    changes = {"model": model, "device": "cpu"} if kind == "CPU" else {"model": model}
    options = options.model_copy(update=changes)
    shape = read_shape(options.model)
    refuse(options, shape, stated_device(options, gigabytes, count))
    return shape


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_config_fits_the_hardware_that_it_names(public, file):
    options, device = load_config([file]), hardware(file)
    shape = fit(options, device, public)
    if of_file := documented("gpus", file.stem):
        phases = estimate(options, shape, stated_device(options, *device[1:]))
        assert " and ".join(f"{phase.total / 1e9:.0f}" for phase in phases) in of_file[0]
    with pytest.raises(UserError, match=r"does not fit|vLLM's share"):
        fit(options, (device[0], device[1] / 4, device[2]), public)


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_sweep_fits_the_hardware_that_it_names(public, file):
    device = hardware(file)
    if file.stem == "study-stale":  # its trials depend on an earlier sweep
        return
    models = {str(trial.options.model): trial.options for trial in load_sweep(file, [], Path("no-runs"))}
    for options in models.values():
        fit(options, device, public)


def next_lines(name: str, word: str) -> tuple[str, list[str]]:
    """The sentence below a config's hardware with that word, up to its options in the same or the next line; the options."""
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    (first,) = [number for number, line in enumerate(lines[:10]) if number and word in line]
    text = " ".join(lines[first : first + 1 + lines[first + 1].startswith("#   -s")])
    return text, re.findall(r"-s (\S+)", text)


@pytest.mark.parametrize(("name", "device"), [("table1", ("GPU", 85, 1)), ("table2-qwen3-30b-a3b", ("GPU", 85, 7))])
def test_a_config_fits_smaller_gpus_with_the_options_that_its_next_lines_name(public, name, device):
    text, changes = next_lines(name, "8-bit moments")
    assert f"of {device[1]} GB" in text
    assert f"--nproc {device[2]}" in text or device[2] == 1
    more = next_lines(name, "A vLLM server")[1] if device[2] > 1 else []
    options = load_config([CONFIGS / f"{name}.yaml"], changes + more)
    assert options.optimizer.eight_bit
    fit(options, device, public)
    with pytest.raises(UserError, match="does not fit"):
        fit(load_config([CONFIGS / f"{name}.yaml"], more), device, public)


@pytest.mark.parametrize("name", ["table1", *(f"table2-qwen3-{size}" for size in ("8b", "14b", "30b-a3b"))])
def test_a_config_fits_seven_of_its_gpus_next_to_a_vllm_server_on_the_eighth(public, name):
    kind, gigabytes, count = hardware(CONFIGS / f"{name}.yaml")
    text, changes = next_lines(name, "A vLLM server")
    assert "--nproc 7" in text
    if name != "table1":
        assert next_lines(f"{name}-codeact", "A vLLM server") == (text, changes)
    options = load_config([CONFIGS / f"{name}.yaml"], changes)
    assert options.rollout.vllm
    assert options.rollout.vllm.server
    assert options.rollout.max_rows == options.rollout.prompts * options.rollout.group_size
    shape = fit(options, (kind, gigabytes, count - 1), public)
    phases = estimate(options, shape, stated_device(options, gigabytes, count - 1))
    figures = " and ".join(f"{phase.total / 1e9:.0f}" for phase in phases)
    assert f"| {2e-9 * shape.parameters:.0f} GB | {figures} GB |" in documented("scaling", name)[0]
    # vLLM uses 0.9 of its GPU by default, for the weights in bfloat16, the cache, and about 4 GB of other memory.
    longest = 256 + max(options.evaluation.limits(options.rollout))
    assert 2 * shape.parameters + longest * 4 * shape.layers * shape.keys + 4e9 < 0.9 * gigabytes * 1e9


def shards(shape: ModelShape, count: int) -> float:
    """Gigabytes of float32 weights, gradients and two moments of each rank."""
    return 16 * shape.parameters / count / 1e9


def test_ranks_gather_the_layers_in_bfloat16_and_all_else_in_float32(public):
    """Computed by hand for Qwen3-14B: 2 x 151,936 x 5120 weights of embedding and projection, and the last norm."""
    outside = 2 * 151_936 * 5120 + 5120
    in_layers = PARAMETERS["Qwen/Qwen3-14B"] - outside
    options = load_config([CONFIGS / "table2-qwen3-14b.yaml"], [f"model.name={public['Qwen/Qwen3-14B']}"])
    shape = read_shape(options.model)
    learning, sampling = estimate(options, shape, stated_device(options, 85, 8))
    kept = [learning.parts[name] for name in ("weights", "optimizer", "gradients")]
    assert sum(kept) == pytest.approx(shards(shape, 8) * 1e9)
    assert sampling.parts["whole weights"] == pytest.approx(2 * in_layers + 4 * outside)
    # Weights and gradients outside of the layers; two layers and a gradient in bfloat16, and its float32 copy.
    assert learning.parts["gathered"] == pytest.approx(8 * outside + (2 * 2 + 2 + 4) * in_layers / 40)


def test_the_first_of_seven_ranks_has_19_of_128_experts(public):
    """128 experts are 19 on each of six ranks and 14 on the last. They are 29 of the 30.5 billion weights of Qwen3-30B-A3B."""
    options = load_config([CONFIGS / "table2-qwen3-30b-a3b.yaml"], [f"model.name={public['Qwen/Qwen3-30B-A3B']}"])
    shape = read_shape(options.model)
    assert shape.largest_share(1) == 1
    assert shape.largest_share(8) == pytest.approx(1 / 8)
    experts = 48 * 128 * 3 * 2048 * 768
    expected = (19 / 128 * experts + (shape.parameters - experts) / 7) / shape.parameters
    assert shape.largest_share(7) == pytest.approx(expected, rel=1e-3)


def test_ranks_gather_a_small_model_as_a_whole_in_float32():
    options = load_config([CONFIGS / "demo.yaml"])
    shape = read_shape(options.model)
    device = Device("cuda", 1e10, bfloat16=True, vllm=False, ranks=2)
    assert shape.parameters < 10_000_000
    learning, sampling = estimate(options, shape, device)
    assert sampling.parts["whole weights"] == 4 * shape.parameters
    assert learning.parts["gathered"] == 8 * shape.parameters


def test_the_cache_holds_whole_episodes(public):
    """8 rows of Qwen3-14B, 4096 tokens of an episode: more than the 512 of a turn."""
    name = f"model.name={public['Qwen/Qwen3-14B']}"
    options = load_config([CONFIGS / "table2-qwen3-14b-codeact.yaml"], [name])
    _, sampling = estimate(options, read_shape(options.model), stated_device(options, 85, 8))
    assert sampling.parts["cache"] > 8 * 4096 * (2 * 40 * 1024 * 2)


def test_table_1_fits_one_large_gpu_too(public):
    assert "or one of 150 GB" in (CONFIGS / "table1.yaml").read_text().splitlines()[0]
    fit(load_config([CONFIGS / "table1.yaml"]), ("GPU", 150, 1), public)


@pytest.mark.parametrize(
    ("name", "changes", "gigabytes", "said", "remedy"),
    [
        (
            "Qwen/Qwen3-8B",
            {},
            85,
            r"learning needs 1\d\d.\d GB .*weights 32.8, optimizer 65.5, gradients 32.8",
            "set model.weights=bfloat16 and optimizer.eight_bit=true",
        ),
        (
            "Qwen/Qwen2.5-7B-Instruct",
            {},
            100,
            r"weights 30.5, optimizer 60.9, gradients 30.5",
            "set model.weights=bfloat16 and optimizer.eight_bit=true",
        ),
        (
            "Qwen/Qwen3-14B",
            {"model__lora": "{rank: 32}"},
            85,
            r"vLLM's share of the GPU is 25.5 GB, but its weights and the cache of one sequence need \d+",
            "set rollout.vllm.gpu_memory_utilization=0.4",
        ),
        ("Qwen/Qwen3-30B-A3B", {}, 40, "vLLM's share", "a larger device, or several GPUs (--nproc)"),
        (
            "Qwen/Qwen2.5-7B-Instruct",
            {"model__lora": "{rank: 32}", "rollout__engine": "torch", "evaluation__max_new_tokens": 16384},
            40,
            r"sampling needs \d+.\d GB .*cache",
            "rollout.max_rows=",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_numbers_and_what_does(public, name, changes, gigabytes, said, remedy):
    options = load_config(
        [CONFIGS / "table1.yaml"], [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    )
    with pytest.raises(UserError, match=said) as raised:
        fit(
            options.model_copy(update={"model": options.model.model_copy(update={"name": name})}),
            ("GPU", gigabytes, 1),
            public,
        )
    assert remedy in str(raised.value)


def test_a_dry_run_prints_the_estimate_for_a_gpu_that_is_not_here(public):
    model = f"model.name={public['Qwen/Qwen2.5-7B-Instruct']}"
    command = ["train", "-c", CONFIGS / "table1.yaml", "-s", model, "--dry-run", "--device-memory"]
    done = sspo(*command, 150)
    assert done.returncode == 0, done.stderr
    assert "# estimated memory on a GPU of 150.0 GB, for 7.62 billion parameters" in done.stdout
    assert_error(sspo(*command, 85), "set model.weights=bfloat16 and optimizer.eight_bit=true")
    assert_error(sspo("train", "--device-memory", 85), "--device-memory applies only to --dry-run")


def test_a_run_that_cannot_fit_stops_before_its_weights_are_opened(public, tmp_path):
    """The model's folder has no weights, so opening them would give another error."""
    model = f"model.name={public['Qwen/Qwen3-30B-A3B']}"
    done = sspo("train", "-s", model, "-s", "device=cpu", "-s", "model.weights=float32", "--runs-dir", tmp_path)
    assert_error(done, "the run does not fit this machine of")
    assert not list(tmp_path.glob("*/metrics.jsonl"))
