"""Lock files, each held by one process at a time."""

from filelock import FileLock, Timeout


def take_lock(lock: FileLock, timeout: float = 0.0) -> bool:
    """Take a lock within `timeout` seconds; returns whether it was taken, or another process still holds it."""
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        return False
    return True
