"""Start and end of the ranks' common work, and checks that the machine is suitable."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sspo_cli.errors import UserError, border
from sspo_cli.launchers import end_with_torchrun, is_rank
from sspo_cli.ranks import heartbeat
from sspo_cli.ranks.keys import FOLDER, PRESENT
from sspo_cli.ranks.place import here
from sspo_cli.ranks.reports import connect, first_cause

PATIENCE = "SSPO_PATIENCE"  # environment variable: seconds that ranks wait for one another
DEFAULT_PATIENCE = 600.0
MOST_NAMED = 3  # differences in a message
ALWAYS_ALLOWED = 4  # ranks that may always be started on a CPU, to try out several ranks


def start(device: str, program: Mapping[str, str] | None = None) -> None:
    """Join the other ranks if a launcher has started several (see `launchers`).

    program  versions that must be equal on all ranks, by name

    Raises UserError if this machine has no GPU for this rank, if another rank fails before it has joined or does not start, or
    if the ranks run different programs.
    """
    if not is_rank(os.environ) or dist.is_initialized():
        return
    end_with_torchrun()
    local, rank, size = (int(os.environ[name]) for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))
    check_start(int(os.environ.get("LOCAL_WORLD_SIZE", local + 1)), device)  # the same on each rank, so reported once
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(local)
    limit = timedelta(seconds=patience())
    with border(f"the ranks cannot join one another at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"):
        store = connect(patience())
        _meet(store, rank, size, program or {})
        # gloo next to NCCL: objects and rows of a batch are exchanged on the CPU.
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        group_store = dist.PrefixStore(f"sspo/group-{size}", store)
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=limit)
    here.rank, here.size = rank, size
    heartbeat.start(store, rank, size)


def _meet(store: Any, rank: int, size: int, program: Mapping[str, str]) -> None:
    """Wait until all ranks are connected to the store. Raises UserError in the cases of `start`.

    Unlike torch, which then waits for connections between the ranks, this notices a rank that fails, and is ended by signals.
    """
    store.set(PRESENT.format(size, rank), json.dumps(dict(program)))
    places = [PRESENT.format(size, number) for number in range(size)]
    deadline = time.monotonic() + patience()
    while not store.check(places):
        if cause := first_cause(store, range(size), "start the command again"):
            raise cause
        if time.monotonic() > deadline:
            absent = [f"rank {number}" for number, place in enumerate(places) if not store.check([place])]
            raise UserError(f"{' and '.join(absent)} did not start within {patience():g} seconds ({PATIENCE})")
        time.sleep(0.1)
    programs = [json.loads(store.get(place)) for place in places]
    check_agreement("another program", programs, "install the same versions on all machines")


def check_agreement(what: str, of_ranks: Sequence[Mapping[str, Any]], remedy: str) -> None:
    """Raise UserError if the values of a rank differ from those of the first rank.

    what      what a rank with other values has, such as "other options"
    of_ranks  short plain values of each rank, by name
    remedy    end of the message
    """
    first = of_ranks[0]
    for number, values in enumerate(of_ranks):
        names = [name for name in {**first, **values} if first.get(name) != values.get(name)]
        if names:
            listed = [f"{name}: {values.get(name)} instead of {first.get(name)}" for name in names[:MOST_NAMED]]
            more = ", …" if len(names) > MOST_NAMED else ""
            raise UserError(f"rank {number} has {what} than rank 0 ({', '.join(listed)}{more}); {remedy}")


def stop() -> None:
    """Leave the process group at the end of a run, once all ranks have reached it.

    Errors of a rank that is already lost are ignored: that rank reports its error itself, and this rank's work is done.
    """
    if here.size > 1:
        with suppress(RuntimeError):
            dist.barrier()
        with suppress(RuntimeError):
            heartbeat.end(here.store, here.rank)
        dist.destroy_process_group()
        here.rank, here.size, here.store = 0, 1, None


def announce_folder(path: Path) -> None:
    """Send the run's folder to the supervisor, which records the failure there if the first rank is killed."""
    if here.size > 1:
        here.store.set(FOLDER, str(path.absolute()))


def check_start(count: int, device: str) -> None:
    """Raise UserError if `count` ranks cannot be started on this machine.

    Causes are too few GPUs, too few cores for ranks on a CPU, a single GPU as `device`, or an invalid SSPO_PATIENCE.
    """
    patience()
    if device == "cpu" or not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if count > max(cores, ALWAYS_ALLOWED):
            raise UserError(
                f"{count} ranks are too many for the {cores} core{'s' * (cores > 1)} that this process may use; start at most "
                f"{max(cores, ALWAYS_ALLOWED)}"
            )
        return
    check_device(device)
    if (gpus := torch.cuda.device_count()) < count:
        raise UserError(f"{count} ranks need as many GPUs, and this machine has {gpus}; start at most {gpus}")


def check_device(device: str) -> None:
    """Raise UserError if `device` is a single GPU, which several ranks cannot share."""
    if device not in ("auto", "cuda", "cpu"):
        raise UserError(f"device = {device} is a single GPU, but each rank needs its own; use cuda or auto")


def patience() -> float:
    """Return how many seconds ranks wait for one another. Raises UserError if SSPO_PATIENCE is not a valid number."""
    value = os.environ.get(PATIENCE, str(DEFAULT_PATIENCE))
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 1.0 <= seconds <= 1e7:
        raise UserError(f"{PATIENCE} = {value} is not a number of seconds; use a number from 1 to 10,000,000")
    return seconds
