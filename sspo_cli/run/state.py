"""The state of the training loop and its components."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sspo_cli.config import RunOptions
from sspo_cli.evaluation.benchmark import Benchmark
from sspo_cli.interruption import Interruption
from sspo_cli.objectives import Objective
from sspo_cli.policy.batch import Batch
from sspo_cli.policy.model import Policy
from sspo_cli.rewards import AnswerChecker
from sspo_cli.rollout.engine import Engine
from sspo_cli.rollout.episodes import Stage
from sspo_cli.tracking.run_folder import RunFolder
from sspo_cli.tracking.tracker import Tracker
from sspo_cli.types import Prompt


@dataclass
class RunState:
    """The state of a run. Together with weights and optimizer, it lets a resumed run continue as if it had never stopped.

    step       number of optimizer steps so far, including skipped steps
    rollout    number of finished rollout batches
    position   number of finished minibatches of the current rollout batch
    batch      the current rollout batch; None until it is sampled
    kept       rows of `completions.jsonl` by row of the batch; each is written when its minibatch is learned
    tokens     number of tokens sampled so far
    timeouts   number of answer checks that have timed out so far
    skipped    number of steps skipped so far because the loss or its gradient was not finite
    bad_steps  number of consecutive skipped steps up to the current step
    learned    True if any rollout batch has had a gradient
    alike      number of consecutive rollout batches without a gradient up to the current batch
    extra      number of prompts drawn so far to replace dropped groups

    recent_weights  trained weights at the start of the last `rollout.lag` + 1 batches, oldest first; empty if the lag is 0
    """

    step: int = 0
    rollout: int = 0
    position: int = 0
    batch: Batch | None = None
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
    tokens: int = 0
    timeouts: int = 0
    skipped: int = 0
    bad_steps: int = 0
    learned: bool = False
    alike: int = 0
    extra: int = 0
    recent_weights: list[list[Tensor]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a dictionary of tensors and plain values, for a checkpoint."""
        return {**vars(self), "batch": self.batch and self.batch.state_dict()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "RunState":
        """Restore the state from a checkpoint.

        Raises ValueError if an older version saved the checkpoint in the middle of a rollout batch, without its completions.
        """
        if state["batch"] is not None and "kept" not in state:
            raise ValueError(
                "an older version of sspo saved it in the middle of a rollout batch, without its completions"
            )
        return cls(**{**state, "batch": state["batch"] and Batch.from_state_dict(state["batch"])})


@dataclass
class Run:
    """The components of the training loop.

    prompts     prompts of each task
    stage       environments of the episodes
    keep_going  do not stop the run if it learns nothing
    reference   trained weights of the reference policy; None if there is no KL penalty
    """

    options: RunOptions
    folder: RunFolder
    policy: Policy
    objective: Objective
    optimizer: torch.optim.Optimizer
    engine: Engine
    stage: Stage
    prompts: Sequence[Sequence[Prompt]]
    benchmarks: Sequence[Benchmark]
    checker: AnswerChecker
    tracker: Tracker
    interruption: Interruption
    state: RunState = field(default_factory=RunState)
    keep_going: bool = False
    reference: Sequence[Tensor] | None = None
