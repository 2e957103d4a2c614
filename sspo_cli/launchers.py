"""Launchers that start several copies of a program, each as a rank of one job: torchrun, SLURM's srun, mpirun.

Ranks that torchrun or `--nproc` starts share the work of one run. Ranks of other launchers would all do the same work.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping

from sspo_cli.errors import UserError

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# The number of ranks, then the index of this rank.
TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK")  # also of accelerate, DeepSpeed and Kubernetes' training jobs
MPI = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
)
# The number of tasks, first of this step, then of the whole job; then the index of this task.
SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_PROCID", "SLURM_LOCALID")
# Names of jobs with a shell that is started once, for any number of tasks, like a batch script.
INTERACTIVE = ("interactive", "bash")
NUMBERS = (*TORCHRUN, "MASTER_PORT")  # all that a rank needs to find the others, next to MASTER_ADDR
OF_TORCHRUN = "TORCHELASTIC_RUN_ID"  # set by torchrun, and by no other launcher that sets the variables above
SUPERVISED = "SSPO_SUPERVISED"  # set for ranks that `--nproc` has started
VARIABLES = (*NUMBERS, "MASTER_ADDR", OF_TORCHRUN, SUPERVISED, *(name for names in MPI for name in names), *SLURM)


def is_rank(environment: Mapping[str, str]) -> bool:
    """Report whether this process is one of several ranks that torchrun or `--nproc` has started."""
    if not environment.get("MASTER_ADDR") or not all(environment.get(name, "").isdecimal() for name in NUMBERS):
        return False
    return _number(environment, "WORLD_SIZE") > max(1, _number(environment, "RANK"))


def is_first_rank(environment: Mapping[str, str]) -> bool:
    """Report whether this process is the first rank, or the only process."""
    return not is_rank(environment) or _number(environment, "RANK") == 0


def refuse_wrong_ranks(environment: Mapping[str, str], nproc: int | None) -> None:
    """Raise UserError if this process is one of several ranks that cannot connect, or is a rank and `nproc` is given."""
    if not is_rank(environment):
        refuse_several_ranks(environment, "sspo finds the others only if torchrun or --nproc starts them")
    elif nproc and SUPERVISED not in environment:
        raise UserError("torchrun has started the ranks already; leave out --nproc")


def refuse_several_ranks(environment: Mapping[str, str], reason: str = "this command needs only one") -> None:
    """Raise UserError if this process is one of several ranks, because each rank would do the same work."""
    if ranks := _ranks(environment):
        raise UserError(
            f"this process was started as one of several ranks ({ranks}), and {reason}, so each rank would do the same "
            "work; start a single process, without mpirun or several SLURM tasks (srun --ntasks=1)"
        )


def starting_words(environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after a command that start it on the same number of ranks as this process has.

    If there are several machines, `--rdzv-endpoint` specifies the machine of the first rank.
    """
    if not is_rank(environment):
        return ["sspo"], []
    count, here = _number(environment, "WORLD_SIZE"), _number(environment, "LOCAL_WORLD_SIZE")
    if SUPERVISED in environment:
        return ["sspo"], ["--nproc", str(count)]
    machines = count // here if here else 1
    several = ["--nnodes", str(machines), "--rdzv-backend", "c10d"]
    several += ["--rdzv-endpoint", f"{environment['MASTER_ADDR']}:29500"]
    each = ["--nproc-per-node", str(here or count)]
    return ["torchrun", *(several if machines > 1 else []), *each, "-m", "sspo_cli", "--"], []


def without_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process that is not a rank, such as a trial, even if its parent process is a rank."""
    return {name: value for name, value in environment.items() if name not in VARIABLES}


def ending_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that sends a process SIGTERM if its parent is killed, or None if the system has no such feature."""
    return _end_with_parent if sys.platform == "linux" else None


def end_with_torchrun() -> None:
    """Make the system send this process SIGTERM if it is a rank and torchrun, its parent, is killed."""
    if OF_TORCHRUN in os.environ and SUPERVISED not in os.environ and sys.platform == "linux":
        _end_with_parent()


def _end_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent was killed before prctl
        os._exit(1)


def _ranks(environment: Mapping[str, str]) -> str | None:
    """Return the variables that indicate several ranks, as `NAME=value, NAME=value`, or None."""
    for size, *numbers in (TORCHRUN, *MPI):
        if _number(environment, size) > 1 or any(_number(environment, name) > 0 for name in numbers):
            return _listed(environment, size, *numbers)
    tasks = next((name for name in SLURM[:3] if name in environment), None)
    if tasks is None or "SLURM_PROCID" not in environment or _is_slurm_shell(environment):
        return None  # not by srun: salloc and sbatch also set the number of tasks in their shells
    several = _number(environment, tasks) > 1 or _number(environment, "SLURM_PROCID") > 0
    return _listed(environment, tasks, "SLURM_PROCID") if several else None


def _is_slurm_shell(environment: Mapping[str, str]) -> bool:
    of_a_step = "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment
    is_script = environment.get("ENVIRONMENT") == "BATCH"
    return not of_a_step and (is_script or environment.get("SLURM_JOB_NAME") in INTERACTIVE)


def _listed(environment: Mapping[str, str], *names: str) -> str:
    return ", ".join(f"{name}={environment[name]}" for name in names if name in environment)


def _number(environment: Mapping[str, str], name: str) -> int:
    """Return the number in a variable, or 0 if it is not set or not a number."""
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 0
