"""Copies of a checkpoint's model, in the dtype of the checkpoint or a different one."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sspo_cli.policy.checkpoint import MANIFEST, follow_umask, holds_optimizer
from sspo_cli.policy.model import DTYPES
from sspo_cli.policy.pretrained import load_config, model_class
from sspo_cli.policy.sharded_files import INDEX, SafetensorsWriter

DTYPE_NAMES = ("dtype", "torch_dtype")  # in a config


def copy_model(checkpoint: Path, folder: Path, dtype: str | None) -> None:
    """Copy the model and the tokenizer of a checkpoint to a folder, tensor by tensor, under the names in its files.

    dtype  dtype of floating-point weights in the copy, except those that the model's class keeps in float32; None: unchanged
    """
    kept = _kept_in_float32(checkpoint) if dtype else ()
    writer = SafetensorsWriter(folder)
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                if dtype and tensor.is_floating_point() and not any(part in name for part in kept):
                    tensor = tensor.to(DTYPES[dtype])
                writer.add(name, tensor)
    writer.finish()
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors" or path.name in (INDEX, MANIFEST) or holds_optimizer(path.name):
            continue
        if path.name == "config.json" and dtype:
            config = _with_dtype(json.loads(path.read_text()), dtype)
            (folder / path.name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        else:
            shutil.copyfile(path, folder / path.name)
    follow_umask(folder)


def _kept_in_float32(checkpoint: Path) -> tuple[str, ...]:
    kind = model_class(str(checkpoint), load_config(str(checkpoint)))
    return (*(kind._keep_in_fp32_modules or ()), *(kind._keep_in_fp32_modules_strict or ()))


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Set the dtype in a config and in the configs within it."""
    changed = {name: _with_dtype(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return changed | {name: dtype for name in DTYPE_NAMES if changed.get(name) in DTYPES}
