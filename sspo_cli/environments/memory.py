"""Memory of the machine and of single processes. Linux only."""

from pathlib import Path

# Files with a container's limit and usage, for cgroup v2 and v1. The usage includes reclaimable page cache.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_OWN = ("RssAnon", "RssShmem", "VmSwap")


def available_bytes() -> int:
    """Return the bytes that can be allocated without swapping, within this container's limit."""
    available = _kilobytes(Path("/proc/meminfo"), ("MemAvailable",)) << 10
    for limit, usage in _CGROUPS:
        try:
            available = min(available, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # another version of cgroups, or no limit (`max`)
            continue
    return max(0, available)


def private_bytes(process_id: int) -> int:
    """Return the anonymous memory of a process in bytes, including swapped pages and pages shared since a fork.

    Returns 0 if the process has ended.
    """
    try:
        return _kilobytes(Path(f"/proc/{process_id}/status"), _OWN) << 10
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _kilobytes(file: Path, names: tuple[str, ...]) -> int:
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in names if name in fields)
