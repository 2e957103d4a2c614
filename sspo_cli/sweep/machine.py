"""The local machine as a place for trials: several at the same time on each of its GPUs, or on its processor."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.place import command_of, log_of, spawn


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one trial. `gpu` is an entry of CUDA_VISIBLE_DEVICES, or None for the processor."""

    name: str
    gpu: str | None


class Machine:
    """Runs at most one trial in each slot. The slots share the machine's cores evenly."""

    def __init__(self, jobs: int, gpus: Sequence[str]) -> None:
        """Create `jobs` slots on each GPU, or on the processor if there are no GPUs."""
        on_gpus = [Slot(f"GPU {gpu}", gpu) for gpu in gpus for _ in range(jobs)]
        self._free = on_gpus or [Slot(f"slot {number}", None) for number in range(1, jobs + 1)]
        self._cores_each = max(1, len(os.sched_getaffinity(0)) // len(self._free))

    def start(self, trial: Trial, folder: Path) -> "RunningProcess | None":
        if not self._free:
            return None
        slot = self._free.pop(0)
        threads = min(trial.options.threads, self._cores_each)
        trial = replace(trial, options=trial.options.model_copy(update={"threads": threads}))
        environment = {"OMP_NUM_THREADS": str(threads)}
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        process = spawn(command_of(trial, folder), environment, log_of(trial, folder))
        return RunningProcess(process, slot, self._free)


class RunningProcess:
    """A trial in a slot, which becomes free when the trial is found to have ended."""

    def __init__(self, process: subprocess.Popen[bytes], slot: Slot, free: list[Slot]) -> None:
        self._process, self._slot, self._free = process, slot, free

    @property
    def slot(self) -> str:
        return self._slot.name

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._slot not in self._free:
            self._free.append(self._slot)
        return code

    def stop(self) -> None:
        self._process.terminate()  # it saves its state

    def wait(self) -> None:
        self._process.wait()


def visible_gpus() -> list[str]:
    """Return the entries of CUDA_VISIBLE_DEVICES, or every GPU that the driver lists, or none without a driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.split() if listed.returncode == 0 else []
