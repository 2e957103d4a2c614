"""Lock files, each held by one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from sspo_cli.errors import UserError, border


def take_lock(lock: FileLock, timeout: float = 0.0) -> bool:
    """Take a lock within `timeout` seconds; return False if another process still holds it.

    Raises UserError if the file system is full, failing or read-only, or does not support locks.
    """
    with border(f"cannot lock {lock.lock_file}", Timeout):
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            return False
    return True


@contextmanager
def hold_lock(lock: FileLock, timeout: float = 600.0) -> Iterator[None]:
    """Hold a lock within the block.

    Raises UserError in the same cases as `take_lock`, and if another process holds the lock for more than `timeout` seconds.
    """
    if not take_lock(lock, timeout):
        raise UserError(f"another process has held {lock.lock_file} for {timeout / 60:g} minutes; end it and try again")
    try:
        yield
    finally:
        lock.release()
