"""The local machine as a place for trials, which run on one or more GPUs each, or on the CPU."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sspo_cli.errors import UserError
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.place import command_of, log_of, spawn


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot for one trial. `gpus` is the value of CUDA_VISIBLE_DEVICES for the trial, or None for the CPU."""

    name: str
    gpus: str | None


class Machine:
    """Runs at most one trial in each slot. The ranks of all slots share the machine's cores evenly."""

    def __init__(self, jobs: int, gpus: Sequence[str], ranks: int = 1) -> None:
        """Create `jobs` slots on each group of `ranks` GPUs, or on the processor if there are no GPUs.

        Raises UserError if there are fewer GPUs than ranks, or if trials of several ranks would share GPUs.
        """
        if gpus and len(gpus) < ranks:
            raise UserError(
                f"a trial of {ranks} ranks needs as many GPUs, but this machine has {len(gpus)}; lower --nproc"
            )
        if gpus and ranks > 1 and jobs > 1:
            raise UserError(
                f"--jobs {jobs} shares each GPU among trials, but a trial of several ranks needs whole GPUs; leave out --jobs"
            )
        groups = [gpus[first : first + ranks] for first in range(0, len(gpus) - ranks + 1, ranks)]
        on_gpus = [_slot_on(group) for group in groups for _ in range(jobs)]
        self._free = on_gpus or [Slot(f"slot {number}", None) for number in range(1, jobs + 1)]
        self._ranks, self.slots = ranks, len(self._free)
        self._cores_each = max(1, len(os.sched_getaffinity(0)) // (len(self._free) * ranks))
        idle = gpus[len(groups) * ranks :]
        self.layout = f"{len(self._free)} at a time: {', '.join(slot.name for slot in self._free)}" + (
            f"; idle: {_slot_on(idle).name}" if idle else ""
        )

    def note(self, trials: Sequence[Trial]) -> str | None:
        """Return a sentence if trials get fewer threads than their options say, because they share the cores."""
        most = max(trial.options.threads for trial in trials)
        if most <= self._cores_each:
            return None
        return (
            f"threads = {most} is lowered to {self._cores_each}, the cores of this machine for each process of a trial"
        )

    def start(self, trial: Trial, folder: Path) -> "RunningProcess | None":
        if not self._free:
            return None
        slot = self._free.pop(0)
        threads = min(trial.options.threads, self._cores_each)
        trial = replace(trial, options=trial.options.model_copy(update={"threads": threads}))
        environment = {"OMP_NUM_THREADS": str(threads)}
        if slot.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpus
        process = spawn(command_of(trial, folder, self._ranks), environment, log_of(trial, folder))
        return RunningProcess(process, slot, self._free)


class RunningProcess:
    """A trial in a slot, which becomes free when `poll` reports that the trial has ended."""

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


def _slot_on(gpus: Sequence[str]) -> Slot:
    names = ",".join(gpus)
    return Slot(f"{'GPU' if len(gpus) == 1 else 'GPUs'} {names}", names)


def visible_gpus() -> list[str]:
    """Return the entries of CUDA_VISIBLE_DEVICES if it is set, else every GPU that the driver lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listed.stdout.split() if listed.returncode == 0 else []
