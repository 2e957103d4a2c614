"""Scheduling of a sweep: starts trials, retries failed ones, and stops so that the sweep can be continued."""

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from sspo_cli.errors import UserError, quantity
from sspo_cli.interruption import Interrupted, Interruption
from sspo_cli.locks import take_lock
from sspo_cli.redaction import redacted
from sspo_cli.sweep.grid import Trial, check_trials
from sspo_cli.sweep.machine import Machine, visible_gpus
from sspo_cli.sweep.place import Place, PlaceLost, Running
from sspo_cli.sweep.view import TrialsView
from sspo_cli.tracking.files import explain_os_errors, remove_leftovers
from sspo_cli.tracking.run_folder import RunFolder

POLL_SECONDS = 0.5
NAMED = 10  # most trials named in a message


def machine_for(trials: Sequence[Trial], jobs: int, ranks: int) -> Machine:
    """Return this machine as a place for trials of `ranks` ranks, on its GPUs if any trial may use them.

    Raises UserError in the same cases as Machine, and if trials that run at the same time would share a vLLM server.
    """
    on_gpus = any(trial.options.device != "cpu" for trial in trials)
    machine = Machine(jobs, visible_gpus() if on_gpus else [], ranks)
    if machine.slots > 1:
        refuse_shared_servers(trials)
    return machine


def refuse_shared_servers(trials: Sequence[Trial]) -> None:
    """Raise UserError if several trials sample on the same vLLM server, which has the weights of one policy at a time."""
    vllm = [trial.options.rollout.vllm for trial in trials]
    counts = Counter(redacted(options.server) for options in vllm if options and options.server)
    if shared := next((server for server, count in counts.items() if count > 1), None):
        raise UserError(
            f"{counts[shared]} trials sample on the vLLM server {shared}, and trials that run at the same time would replace "
            "each other's weights there; run one trial at a time on this machine, without --ray and --jobs and with --nproc "
            "set to the number of its visible GPUs, or give each trial its own rollout.vllm.server"
        )


@contextmanager
def place_for(trials: Sequence[Trial], jobs: int, ranks: int, ray_address: str | None) -> Iterator[Place]:
    """Provide this machine, or the Ray cluster at `ray_address`. `jobs` and `ranks` are those of Machine and RayCluster.

    Raises UserError in the same cases as these classes, and if Ray is not installed.
    """
    if ray_address is None:
        machine = machine_for(trials, jobs, ranks)
        if ranks > 1:
            print(f"trials of {ranks} ranks, {machine.layout}")
        if note := machine.note(trials):
            print(note)
        yield machine
        return
    if ray_address == "local":
        _keep_local_ray_private()
    try:
        from sspo_cli.sweep.on_ray import RayCluster  # an extra
    except ImportError:
        raise UserError("--ray needs ray; install it with `pip install ray`") from None
    with RayCluster(ray_address, trials, jobs, ranks) as cluster:
        yield cluster


def _keep_local_ray_private() -> None:
    """Restrict a Ray cluster of this process to the loopback interface, and require a generated token.

    Ray reads these environment variables when it is imported; every process of the cluster inherits them.
    """
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # restricts the cluster to this machine and the address 127.0.0.1
        RAY_AUTH_MODE="token",  # because other users of this machine reach the loopback interface too
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )


def run_sweep(trials: Sequence[Trial], folder: Path, place: Place, retries: int) -> None:
    """Run every trial that is not finished, each in `folder`/its name, and show their progress.

    A trial that fails is retried from its last checkpoint, up to `retries` times, after all other trials.

    Raises UserError if trials fail in all of their attempts, if the place is lost, if another process runs this sweep, or if
    the folder cannot be written or has a trial with other options. Raises Interrupted if the user stops
    the sweep, after the trials have saved their state.
    """
    check_trials(trials, folder)  # before a folder is created
    with explain_os_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    if not take_lock(lock):
        raise UserError(f"sweep {folder} is being run by another process; wait for it, or stop it")
    with lock:
        remove_leftovers(folder)
        with Interruption() as interruption, TrialsView(trials, folder, Console(highlight=False)) as view:
            try:
                failed = _run_all(trials, folder, place, retries, view, interruption)
            except PlaceLost as error:
                left = [trial.name for trial in trials if not _is_finished(folder / trial.name)]
                raise UserError(
                    f"{error}; {len(left)} of {quantity(len(trials), 'trial')} did not finish: {_listed(left)}; "
                    "the same command continues them"
                ) from None
    if failed:
        raise UserError(
            f"{len(failed)} of {quantity(len(trials), 'trial')} failed: {_listed(failed)}; their output is in "
            f"{folder}/<trial>.log, and the same command tries them again"
        )


def _run_all(
    trials: Sequence[Trial],
    folder: Path,
    place: Place,
    retries: int,
    view: TrialsView,
    interruption: Interruption,
) -> list[str]:
    """Return the names of the trials that failed."""
    running: dict[str, Running] = {}
    failures: Counter[str] = Counter()
    queue = [trial for trial in trials if not _is_finished(folder / trial.name)]
    by_name = {trial.name: trial for trial in trials}
    try:
        while queue or running:
            if interruption.requested:
                raise Interrupted("stopped; the trials have saved their state, and the same command continues them")
            for name, process in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                del running[name]
                if code == 0 or _is_finished(folder / name):  # a trial that crashed after its last step is complete
                    view.ended(name, "finished")
                    continue
                failures[name] += 1
                again = failures[name] <= retries
                if again:
                    queue.append(by_name[name])
                view.ended(name, "to be retried" if again else "failed")
            for trial in queue[:]:
                run = folder / trial.name
                if RunFolder(run).is_being_written():  # left running by a killed sweep, or on a lost node
                    view.left_running(trial.name)  # tried later
                    continue
                if _is_finished(run):  # finished by that process in the meantime
                    queue.remove(trial)
                    view.ended(trial.name, "finished")
                elif (started := place.start(trial, folder)) is not None:
                    queue.remove(trial)
                    running[trial.name] = started
                    view.started(trial.name, started.slot)
                else:
                    break
            view.refresh()
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.stop()
        for name, process in running.items():
            process.wait()
            view.ended(name, "finished" if _is_finished(folder / name) else "stopped")
    return [name for name, count in failures.items() if count > retries]


def _listed(names: Sequence[str]) -> str:
    """Join names for a message. Of many names, only the first are listed."""
    more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def _is_finished(run: Path) -> bool:
    return RunFolder(run).status.get("state") == "finished"
