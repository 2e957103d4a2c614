"""A Ray cluster as a place for trials. Its nodes must see the folder of runs, and the one that the sweep is started in, under
the same paths."""

import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import AuthenticationError, RayError

from sspo_cli.errors import UserError, first_line
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.place import command_of, log_of, spawn

CONNECT_SECONDS = 10.0
GPU_UNITS = 10_000  # Ray divides a GPU no finer
LOST = -1  # the exit code of a trial that went down with its worker or its node


class RayCluster:
    """A context manager. Each trial is a task that takes a CPU for each of its threads, and its share of a GPU."""

    def __init__(self, address: str, trials: Sequence[Trial], jobs: int) -> None:
        """`address`: `local` starts a cluster on this machine for as long as the sweep runs, `auto` finds the one that this
        machine belongs to, and anything else is a cluster's address. `jobs` trials share a GPU.

        Raises UserError where the cluster cannot be reached, or where none of its nodes can ever hold a trial.
        """
        _check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except AuthenticationError:
            raise UserError(
                f"the Ray cluster at {address} refuses this process; set RAY_AUTH_MODE, and where that is `token` also "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as they are set on its nodes"
            ) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"no Ray cluster can be reached at {address}: {first_line(error)}") from None
        self._jobs = jobs
        self._started: list[RunningTask] = []
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._has_gpus = any(node.get("GPU") for node in nodes)
        if jobs > 1 and not self._has_gpus:
            ray.shutdown()
            raise UserError(
                "--jobs shares GPUs out, and the Ray cluster has none; as many trials run as its CPUs can hold, `threads` each"
            )
        for wanted in map(self._wanted, trials):
            if not any(_fits(wanted, node) for node in nodes):
                ray.shutdown()
                raise UserError(
                    f"a trial takes {_amounts(wanted)}, and no node of the Ray cluster has as much; the nodes have "
                    f"{', '.join(map(_amounts, nodes))}; lower `threads` in the sweep's options"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()

    def start(self, trial: Trial, folder: Path) -> "RunningTask | None":
        wanted = self._wanted(trial)
        # Ray would queue it, and not say that it waits. What it reports as free lags behind, so count here.
        self._started = [task for task in self._started if task.poll() is None]
        taken = {name: sum(task.takes[name] for task in self._started) for name in wanted}
        if any(
            taken[name] + wanted[name] > amount for name, amount in ray.cluster_resources().items() if name in taken
        ):
            return None
        folder = folder.resolve()
        log = log_of(trial, folder)
        task = _run.options(num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], name=trial.name).remote(
            command_of(trial, folder), {"OMP_NUM_THREADS": str(trial.options.threads)}, log, Path.cwd()
        )
        self._started.append(RunningTask(task, wanted, log))
        return self._started[-1]

    def _wanted(self, trial: Trial) -> dict[str, float]:
        on_gpu = self._has_gpus and trial.options.device != "cpu"
        share = GPU_UNITS // self._jobs / GPU_UNITS  # rounded down, else the last of them would find no room
        return {"CPU": float(trial.options.threads), "GPU": share if on_gpu else 0.0}


class RunningTask:
    def __init__(self, task: Any, takes: Mapping[str, float], log: Path) -> None:
        self._task = task
        self._log = log
        self._code: int | None = None
        self.takes = takes

    @property
    def slot(self) -> str:
        return _amounts(self.takes)

    def poll(self) -> int | None:
        ended, _ = ray.wait([self._task], timeout=0)
        if ended and self._code is None:
            try:
                self._code = ray.get(self._task)
            except (
                RayError
            ) as error:  # its worker or node is gone, or is not set up; it goes on from its last checkpoint
                self._code = LOST
                with self._log.open("a", encoding="utf-8") as log:
                    log.write(f"\nlost by Ray: {error}\n")
        return self._code

    def stop(self) -> None:
        ray.cancel(self._task)

    def wait(self) -> None:
        ray.wait([self._task])


@ray.remote(max_retries=0)  # the sweep itself tries again, and counts
def _run(command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> int:
    """Runs on a node: a trial's process, which ends with this worker."""
    process = spawn(command, environment, log, cwd)
    try:
        return process.wait()
    except KeyboardInterrupt:  # how Ray cancels a task
        process.terminate()
        process.wait()
        raise


def _check_answers(address: str) -> None:
    """Raises UserError where nothing listens at `host:port`; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster can be reached at {address}: {error.strerror or error}") from None


def _fits(wanted: Mapping[str, float], available: Mapping[str, float]) -> bool:
    return all(available.get(name, 0.0) >= amount for name, amount in wanted.items())


def _amounts(resources: Mapping[str, float]) -> str:
    """`2 CPUs and 0.5 GPUs`."""
    amounts = [f"{resources.get('CPU', 0.0):g} CPUs"]
    if resources.get("GPU"):
        amounts.append(f"{resources['GPU']:g} GPUs")
    return " and ".join(amounts)
