"""Run TRL's GRPOTrainer in a child process, in TRL's environment: `python -m tests.benchmarks.by_trl SETTINGS OUT`.

SETTINGS is JSON:

model      a folder
questions  rows of question and answer, in the order of training
graded     whether sspo's rewards grade the completions; all rewards are zero otherwise
device     cpu or cuda
trains     what is trained, as in `Workload.trains`
vllm       the options of vLLM in TRL's process; empty for `transformers.generate`
config     the options of `GRPOConfig` that differ between the runs

All other options are set to what sspo does: GRPO's sequence mean, no KL term, no dropout, float32 on a CPU, the full softmax,
the same micro-batches.
"""

import json
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.workloads import LORA_RANK, clocks, peak_memory, report

torch.set_num_threads(1)


class Readings(TrainerCallback):
    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[tuple[float, float]] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(clocks(self.device))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(clocks(self.device))


def main() -> None:
    settings, out = json.loads(sys.argv[1]), sys.argv[2]
    graded, on_gpu, trains = settings["graded"], settings["device"] == "cuda", settings["trains"]
    bfloat16 = on_gpu or trains == "eight-bit"

    def reward(completions: list[list[dict[str, str]]], answer: list[str], **kwargs: Any) -> list[float]:
        if not graded:
            return [0.0] * len(completions)
        return [reward.total for reward in grade([turns[0]["content"] for turns in completions], answer, checker)]

    if graded:
        from sspo_cli.rewards import AnswerChecker, grade

        checker = AnswerChecker()
    readings = Readings(settings["device"])
    adapters = LoraConfig(
        r=LORA_RANK, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=not on_gpu,
            bf16=bfloat16,
            gradient_checkpointing=trains != "everything",
            num_iterations=1,
            shuffle_dataset=False,
            loss_type="grpo",
            importance_sampling_level="token",
            scale_rewards="group",
            epsilon=0.2,
            beta=0.0,
            temperature=1.0,
            optim="adamw_torch_8bit" if trains == "eight-bit" else "adamw_torch",
            optim_args="bf16_stochastic_round=True" if trains == "eight-bit" else None,
            adam_beta1=0.9,
            adam_beta2=0.99,
            adam_epsilon=1e-8,
            weight_decay=0.0,
            max_grad_norm=1.0,
            learning_rate=2e-4,
            lr_scheduler_type="linear",
            warmup_steps=10,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
            model_init_kwargs={
                "dtype": "bfloat16" if bfloat16 and trains != "everything" else "float32",
                "attn_implementation": "sdpa",
            },
            **({"use_vllm": True, "vllm_mode": "colocate", **settings["vllm"]} if settings["vllm"] else {}),
            **settings["config"],
        )
        rows = [
            {"prompt": [{"role": "user", "content": row["question"]}], "answer": row["answer"]}
            for row in settings["questions"]
        ]
        trainer = GRPOTrainer(
            model=settings["model"],
            processing_class=AutoTokenizer.from_pretrained(settings["model"], padding_side="left"),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            callbacks=[readings],
            peft_config=adapters if trains == "lora" else None,
        )
        trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]  # one row per rollout batch
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row]
    report(out, times=readings.times, rewards=rewards, lengths=lengths, memory=peak_memory(settings["device"]))


if __name__ == "__main__":
    main()
