"""Workloads for sspo and TRL: models of random weights, prompts of 22 tokens, completions that never end early.

One workload is a real model on questions in words, whose completions may end before the limit.
"""

import json
import random
import string
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from tests.real_model import smollm2

PROMPT = 22  # tokens
MU = 2
LORA_RANK = 32
VLLM_SHARE = 0.3  # share of the GPU's memory, for both programs
# The phases of a cycle of sspo, timed separately; the rest of a cycle is grading, batching and tracking.
PHASES = ("sampling", "old log-probabilities", "forward and backward", "optimizer")
SYMBOLS = string.ascii_lowercase + string.digits + "<>/=+-*.,:;!?()[]{}_| "


@dataclass(frozen=True)
class Workload:
    """A model's shape and its rollout batch: `prompts` × `group_size` completions of `tokens` tokens, μ = 2.

    trains  every weight in float32, or, with gradient checkpointing, LoRA's adapters or bfloat16 weights with 8-bit Adam
    real    the published weights of this shape are used instead of random ones; `tokens` is then a limit
    vllm    both programs sample with vLLM in their own process, instead of the torch engine and `transformers.generate`
    """

    name: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    intermediate: int
    prompts: int
    group_size: int
    tokens: int
    key_heads: int | None = None
    device: str = "cpu"
    tied: bool = True
    trains: Literal["everything", "lora", "eight-bit"] = "everything"
    real: bool = False
    vllm: bool = False

    @property
    def micro_batch(self) -> int:
        """Completions in a micro-batch: the whole minibatch on a CPU; as many as sspo's token budget holds on a GPU."""
        return 16 if self.device == "cuda" else self.prompts * self.group_size // MU


CPU = [
    Workload("0.2 M", 64, 64, 3, 2, 192, prompts=16, group_size=8, tokens=48),
    Workload("1 M", 64, 128, 4, 4, 512, prompts=16, group_size=8, tokens=64),
    Workload("151,936 words", 151_936, 256, 2, 4, 1024, prompts=4, group_size=8, tokens=64),
    Workload(smollm2.NAME, 49_152, 576, 30, 9, 1536, prompts=2, group_size=4, tokens=32, key_heads=3, real=True),
]
# The shapes of Qwen2.5.
GPU = [
    Workload("0.5B", 151_936, 896, 24, 14, 4864, 16, 8, 512, key_heads=2, device="cuda"),
    Workload("1.5B", 151_936, 1536, 28, 12, 8960, 16, 8, 512, key_heads=2, device="cuda"),
    Workload("1.5B, vLLM", 151_936, 1536, 28, 12, 8960, 16, 8, 512, key_heads=2, device="cuda", vllm=True),
    Workload("7B, LoRA", 152_064, 3584, 28, 28, 18944, 8, 8, 512, 4, device="cuda", tied=False, trains="lora"),
    Workload("7B, 8-bit", 152_064, 3584, 28, 28, 18944, 8, 8, 512, 4, device="cuda", tied=False, trains="eight-bit"),
]


def build(workload: Workload, folder: Path) -> None:
    """Write the model, its tokenizer and a file of questions to `folder`, unless an earlier call has done so.

    The end-of-sequence id lies outside the model's vocabulary, so that no completion ends before its last token. A real model
    keeps its own id; it is built if it is missing.
    """
    if (folder / "questions.jsonl").exists():
        return
    if workload.real:
        _link_real_model(folder)
        return
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab={
            "<|pad|>": 0,
            **{s if s != " " else "Ġ": 1 + i for i, s in enumerate(SYMBOLS)},
            "<|end|>": workload.vocabulary,
        },
        merges=[],
        unk_token=None,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}=",
        model_max_length=4096,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if workload.device == "cuda" else "cpu"):
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=workload.vocabulary,
                hidden_size=workload.width,
                num_hidden_layers=workload.layers,
                num_attention_heads=workload.heads,
                num_key_value_heads=workload.key_heads or workload.heads,
                intermediate_size=workload.intermediate,
                max_position_embeddings=4096,
                tie_word_embeddings=workload.tied,
                eos_token_id=None,
                bos_token_id=None,
                pad_token_id=0,
            )
        )
    if workload.trains != "everything":
        model.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    draw = random.Random(0)
    rows = []
    for number in range(512):
        question = "".join(draw.choices(string.ascii_lowercase + string.digits, k=PROMPT - 1))
        rows.append({"id": str(number), "question": question, "answer": str(number)})
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _link_real_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in smollm2.build().iterdir():
        (folder / file.name).symlink_to(file)
    with (folder / "questions.jsonl").open("w") as questions:
        for number in range(512):
            fields, trees = 3 + number % 17, 2 + number % 23
            question = (
                f"A farmer has {fields} fields with {trees} trees in each, and plants {number} more. How many trees are "
                "there? Explain every step."
            )
            row = {"id": str(number), "question": question, "answer": str(fields * trees + number)}
            questions.write(json.dumps(row) + "\n")


def cycles(times: list[tuple[float, ...]]) -> list[list[float]]:
    """Return the time of each cycle of μ optimizer steps by every clock, without the first cycle, which is a warm-up.

    times  readings of the clocks before the first optimizer step and after each
    """
    ends = times[::MU]
    return [[b - a for a, b in zip(start, end, strict=True)] for start, end in pairwise(ends)][1:]


def clocks(device: str) -> tuple[float, float]:
    """Return the wall time and the processor time in seconds; on a GPU, synchronize it and return the wall time twice."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        return time.perf_counter(), time.perf_counter()
    return time.perf_counter(), time.process_time()


def peak_memory(device: str) -> int:
    """Return the peak memory of this process in bytes: allocated on the GPU if it uses one, resident otherwise."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(path: str, **values: Any) -> None:
    """Write what a child process has measured, for its parent."""
    Path(path).write_text(json.dumps(values))
