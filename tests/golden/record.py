"""Run the golden cases and renew their recordings: `python -m tests.golden.record [--out FOLDER] [CASE]...`

A change that is meant to change numbers renews `recorded/` in a separate commit that says why. This module uses only
the product's command line and the run folder, so that moving and renaming the product's modules changes only an import
here.
"""

import os

# Kernels that give the same results on every x86-64 machine, because a difference in the last digit grows in training.
os.environ.update({"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"})
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import contextlib
import io
import json
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from sspo_cli.cli import main
from sspo_cli.tracking.measurement import IDENTITY

from .cases import BASE, CASES, COLD_START, COLD_STARTED, COLD_STEPS, ENVIRONMENT, RECORDED, SSPO, WALL_TIMES


def record(folder: Path, names: list[str]) -> None:
    """Run the named cases and write their recordings to `folder`; without names, all cases and what they share."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary)
        shared = {COLD_START: run_cold_start(runs), ENVIRONMENT: environment(runs)}
        for name, values in shared.items():
            if not names:
                write(folder / f"{name}.json", values)
        for name in names or CASES:
            write(folder / f"{name}.json", run_case(name, runs))


def run_cold_start(runs: Path) -> dict[str, Any]:
    """Train the cold start that the cases share, by a run of one step in the empty folder `runs`."""
    printed = train(runs, COLD_START, {**SSPO, "steps": 1})
    lines = [line for line in printed.splitlines() if line.startswith("cold start: ") and "loss" in line]
    return {"options": BASE, "loss": float(lines[-1].rpartition("loss ")[2]), "weights": norms(cold_started(runs))}


def run_case(name: str, runs: Path) -> dict[str, Any]:
    """Train a case in the folder `runs`, where all cases share the cold start, and return its recording."""
    train(runs, name, CASES[name])
    folder = runs / name
    metrics = read_jsonl(folder / "metrics.jsonl")
    for row in metrics:
        for wall_time in WALL_TIMES:
            assert row.pop(wall_time) >= 0, wall_time
    return {
        "options": CASES[name],
        "metrics": {key: [row.get(key) for row in metrics] for key in sorted({key for row in metrics for key in row})},
        "completions": read_jsonl(folder / "completions.jsonl"),
        "summary": [
            without_identity(row) for row in json.loads((folder / "eval" / "summary.json").read_text(encoding="utf-8"))
        ],
        "evaluations": [
            {"benchmark": path.stem, **without_identity(row)}
            for path in sorted((folder / "eval").glob("*.jsonl"))
            for row in read_jsonl(path)
        ],
        "weights": norms(folder / "checkpoints" / "step-10"),
    }


def without_identity(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of an evaluation without its fingerprints and its file.

    The fingerprints change with the code that checks answers, and the file has no numbers.
    """
    return {
        key: value for key, value in row.items() if key not in ("identity", "weights", "path", "trained_on", *IDENTITY)
    }


def train(runs: Path, name: str, options: Mapping[str, Any]) -> str:
    """Run `sspo train` in this process and return what it printed."""
    values = {**BASE, **options}
    if values.get("model.name") == COLD_STARTED:
        values["model.name"] = cold_started(runs)
        del values["model.tiny"]  # would have no effect and is refused
    if not values["cold_start.steps"]:
        values = {key: value for key, value in values.items() if key == "cold_start.steps" or "cold_start." not in key}
    sets = [part for key, value in values.items() for part in ("-s", f"{key}={value}")]
    arguments = ["sspo", "train", "--runs-dir", str(runs), "--run", name, *sets]
    printed = io.StringIO()
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(printed):
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    return printed.getvalue()


def cold_started(runs: Path) -> Path:
    (checkpoint,) = (runs / "cold-starts").glob(f"*/step-{COLD_STEPS}")
    return checkpoint


def norms(checkpoint: Path) -> dict[str, float]:
    """Return the norm of each weight tensor of a checkpoint."""
    (file,) = checkpoint.glob("*.safetensors")
    return {name: tensor.double().norm().item() for name, tensor in sorted(load_file(file).items())}


def environment(runs: Path) -> dict[str, Any]:
    """Return what floats depend on besides the code: the package versions that a run recorded, and the machine."""
    packages = json.loads((runs / COLD_START / "config.json").read_text(encoding="utf-8"))["packages"]
    del packages["sspo"]
    kernels = torch.backends.cpu.get_cpu_capability()
    return {
        "packages": packages,
        "machine": platform.machine(),
        "kernels": kernels,
        "libc": " ".join(platform.libc_ver()),
    }


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON with a line for each metric, completion and answer, and floats of nine digits."""
    path.write_text(in_lines(rounded(values)) + "\n", encoding="utf-8")


def rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.9g}")
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case list():
            return [rounded(item) for item in value]
    return value


def in_lines(value: Any, depth: int = 0) -> str:
    """Return JSON whose two outer levels are indented and whose inner levels are on one line."""
    if depth == 2 or not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    pairs = value.items() if isinstance(value, dict) else (("", item) for item in value)
    lines = [(f"{json.dumps(key)}: " if key else "") + in_lines(item, depth + 1) for key, item in pairs]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    indent = "\n" + "  " * (depth + 1)
    return opening + indent + f",{indent}".join(lines) + "\n" + "  " * depth + closing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORDED)
    parser.add_argument("case", nargs="*", choices=[*CASES, []])
    given = parser.parse_args()
    record(given.out, given.case)
