"""Trials on a Ray cluster.

The nodes must have access to the runs folder and to the working directory of the sweep, under the same paths.
"""

import logging
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import ray
from ray.exceptions import AuthenticationError, RayError

from sspo_cli.errors import UserError, first_line
from sspo_cli.sweep.grid import Trial
from sspo_cli.sweep.place import PlaceLost, command_of, log_of, spawn
from sspo_cli.tracking.run_folder import RunFolder

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.2
SAVING_SECONDS = 120.0  # time for a trial whose worker is gone to save its state
GPU_UNITS = 10_000  # smallest parts into which Ray divides a GPU
LOST = -1  # exit code of a trial whose worker or node was lost


class RayCluster:
    """A context manager that runs each trial as a task on one node. A task reserves its GPUs, and a CPU for each thread."""

    def __init__(self, address: str, trials: Sequence[Trial], jobs: int, ranks: int) -> None:
        """Connect to a cluster.

        address  `local` starts a cluster on this machine for the time of the sweep; `auto` selects the cluster that this machine
                 belongs to; any other value is the address of a cluster
        jobs     trials that share a GPU
        ranks    ranks of each trial; if there are several, each reserves a whole GPU

        Raises UserError if the cluster cannot be reached, if none of its nodes can ever hold a trial, or if trials of several
        ranks would share GPUs.
        """
        if jobs > 1 and ranks > 1:
            raise UserError(
                f"--jobs {jobs} shares each GPU among trials, but a trial of several ranks needs whole GPUs; leave out --jobs"
            )
        _check_answers(address)
        try:
            with _ignored(signal.SIGHUP):  # a closed terminal must not end a local cluster before its trials
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except AuthenticationError:
            raise UserError(
                f"the Ray cluster at {address} refuses this process; set RAY_AUTH_MODE as on its nodes and, if it is "
                "`token`, also RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from None
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"no Ray cluster can be reached at {address}: {first_line(error)}") from None
        self._jobs, self._ranks = jobs, ranks
        self._started: list[RunningTask] = []
        nodes = _alive_nodes()
        self._has_gpus = any(node.get("GPU") for node in nodes)
        if jobs > 1 and not self._has_gpus:
            ray.shutdown()
            raise UserError(
                "--jobs shares GPUs among trials, but the Ray cluster has none; leave out --jobs, and free CPUs limit the trials"
            )
        for wanted in map(self._wanted, trials):
            if not any(_fits(wanted, node) for node in nodes):
                ray.shutdown()
                raise UserError(
                    f"a trial needs {_amounts(wanted)}, but no node of the Ray cluster has that much; the nodes have "
                    f"{', '.join(map(_amounts, nodes))}; lower `threads` in the sweep's options{' or --nproc' * (ranks > 1)}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()

    def start(self, trial: Trial, folder: Path) -> "RunningTask | None":
        """Submit a trial if the cluster has room for it.

        Raises PlaceLost if nothing runs and no remaining node can hold it.
        """
        wanted = self._wanted(trial)
        # Ray would queue the task silently. Its report of free resources lags behind, so count them here.
        self._started = [task for task in self._started if task.poll() is None]
        if not self._started and not _can_hold(wanted):
            raise PlaceLost(f"no remaining node of the Ray cluster has the {_amounts(wanted)} that a trial needs")
        taken = {name: sum(task.takes[name] for task in self._started) for name in wanted}
        if any(
            taken[name] + wanted[name] > amount for name, amount in ray.cluster_resources().items() if name in taken
        ):
            return None
        alike = [task for task in self._started if task.takes == wanted]
        if len(alike) >= sum(
            _room(wanted, node) for node in _alive_nodes()
        ):  # no single node has enough free resources
            return None
        folder = folder.resolve()
        log = log_of(trial, folder)
        task = _run.options(num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], name=trial.name).remote(
            command_of(trial, folder, self._ranks), {"OMP_NUM_THREADS": str(trial.options.threads)}, log, Path.cwd()
        )
        self._started.append(RunningTask(task, wanted, log, RunFolder(folder / trial.name)))
        return self._started[-1]

    def _wanted(self, trial: Trial) -> dict[str, float]:
        on_gpu = self._has_gpus and trial.options.device != "cpu"
        share = GPU_UNITS // self._jobs / GPU_UNITS  # rounded down, otherwise the last trial would not fit
        return {"CPU": float(trial.options.threads * self._ranks), "GPU": share * self._ranks if on_gpu else 0.0}


class RunningTask:
    """A trial that was submitted to the cluster."""

    def __init__(self, task: Any, takes: Mapping[str, float], log: Path, run: RunFolder) -> None:
        self._task, self._log, self._run = task, log, run
        self._code: int | None = None
        self.takes = takes

    @property
    def slot(self) -> str:
        """Resources that the trial reserves in the cluster."""
        return _amounts(self.takes)

    def poll(self) -> int | None:
        """Return the trial's exit code, LOST if its worker or node is gone or is not set up, None while it runs."""
        if self._code is None and ray.wait([self._task], timeout=0)[0]:
            try:
                self._code = ray.get(self._task)
            except RayError as error:
                self._lose(error)
        elif self._code is None and not _can_hold(self.takes):
            ray.cancel(self._task)  # otherwise a task that is queued for a lost node would wait forever
            self._lose("no remaining node can hold it")
        return self._code

    def stop(self) -> None:
        """Cancel the task, which stops its trial."""
        ray.cancel(self._task)

    def wait(self) -> None:
        """Wait until the trial has ended, even if its worker or its node has ended before it."""
        ray.wait([self._task])
        deadline = time.monotonic() + SAVING_SECONDS
        while self._run.is_being_written() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _lose(self, reason: object) -> None:
        self._code = LOST
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"\nlost by Ray: {reason}\n")


@ray.remote(max_retries=0)  # the sweep itself counts failures and retries
def _run(command: Sequence[str], environment: Mapping[str, str], log: Path, cwd: Path) -> int:
    """Run a trial's process on a node and return its exit code; stop the process if the task is cancelled.

    Ray cancels a task by simulating SIGINT within Python: the handler runs between two instructions of the main thread and
    does not interrupt a blocking call. Ray repeats this until the task has ended, so the handler raises nothing.
    """
    is_cancelled = False

    def cancel(number: int, frame: FrameType | None) -> None:
        nonlocal is_cancelled
        is_cancelled = True

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        process = spawn(command, environment, log, cwd)
        while process.poll() is None:
            if is_cancelled:
                process.terminate()  # it saves its state
                break
            time.sleep(POLL_SECONDS)
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)


def _alive_nodes() -> list[dict[str, float]]:
    """Return the resources of each live node of the cluster, used or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _can_hold(wanted: Mapping[str, float]) -> bool:
    """Report whether a node of the cluster has these resources in total. Otherwise, Ray would let the task wait forever."""
    return any(_fits(wanted, node) for node in _alive_nodes())


@contextmanager
def _ignored(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal within the block, and permanently in processes started within it."""
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _check_answers(address: str) -> None:
    """Raise UserError if nothing listens at `host:port`, because Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster can be reached at {address}: {error.strerror or error}") from None


def _fits(wanted: Mapping[str, float], available: Mapping[str, float]) -> bool:
    return all(available.get(name, 0.0) >= amount for name, amount in wanted.items())


def _room(wanted: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Return how many trials fit on a node at a time."""
    return min(int(node.get(name, 0.0) / amount + 1e-6) for name, amount in wanted.items() if amount)


def _amounts(resources: Mapping[str, float]) -> str:
    """Format resources: `2 CPUs and 0.5 GPUs`."""
    amounts = [f"{resources.get('CPU', 0.0):g} CPUs"]
    if resources.get("GPU"):
        amounts.append(f"{resources['GPU']:g} GPUs")
    return " and ".join(amounts)
