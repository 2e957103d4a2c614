"""The program that wrote a run: its revision and the versions of its packages, for config.json and the page."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sspo_cli import ranks

PACKAGES = (
    "sspo",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "math-verify",
    "numpy",
    "vllm",
    "peft",
    "ray",
    "torchao",
    "liger-kernel",
    "triton",
)


def describe_program() -> dict[str, Any]:
    """Return the revision, the versions of the installed packages and the number of ranks."""
    return {"revision": git_revision(), "packages": package_versions(), "ranks": ranks.size()}


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    installed = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra
    return installed


def git_revision() -> str | None:
    """Return the commit that sspo runs from, with `-dirty` if tracked files differ; None outside a git work tree."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a work tree that takes too long
        return None
    return done.stdout.strip() or None
