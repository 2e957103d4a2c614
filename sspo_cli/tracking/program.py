"""The program that wrote a run: git revision and package versions, for config.json and the report page."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from sspo_cli import __version__, ranks

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

OF_ONE_RANK = ("python", "vllm", "ray")  # may differ between the machines of a run


def describe_program() -> dict[str, Any]:
    """Return the git revision, the versions of the packages in PACKAGES and of Python, and the number of ranks."""
    return {"revision": git_revision(), "packages": package_versions(), "ranks": ranks.size()}


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages in PACKAGES."""
    installed = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # optional, and not installed
    return installed


def describe_source() -> dict[str, str]:
    """Return what must be equal on all ranks: the versions of packages, and of this program with a hash of its source."""
    packages = {name: version for name, version in package_versions().items() if name not in OF_ONE_RANK}
    source, folder = xxhash.xxh3_64(), Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        source.update(path.read_bytes())
    return {**packages, "sspo": f"{__version__} with source {source.hexdigest()}"}


def git_revision() -> str | None:
    """Return the commit of this source tree, with `-dirty` if tracked files are changed; None outside a git work tree."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or takes too long
        return None
    return done.stdout.strip() or None
