"""Files of a sharded policy: the model, gathered and written layer by layer, and the optimizer, in one part per rank."""

import copy
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers.core_model_loading import revert_weight_conversion

from sspo_cli import ranks
from sspo_cli.errors import UserError, first_line, says_memory_is_full
from sspo_cli.policy.sharding import shard_like, whole

SHARD_BYTES = 4 << 30  # of a file of weights
INDEX = "model.safetensors.index.json"
OPTIMIZER_INDEX = ".metadata"  # of torch's distributed checkpoint
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # by the names of parameters, for any number of ranks
LAYER = re.compile(r".*?\.\d+\.")


class SafetensorsWriter:
    """Writes tensors to files of about SHARD_BYTES with Hugging Face's names, so that few are in memory at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, Tensor] = {}
        self._names: list[list[str]] = []  # of the tensors in each file
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self._held[name] = tensor.cpu().contiguous()
        self._total += tensor.nbytes
        if sum(held.nbytes for held in self._held.values()) >= SHARD_BYTES:
            self._write()

    def finish(self) -> None:
        """Write what is left, and the index if there are several files."""
        if self._held or not self._names:
            self._write()
        count = len(self._names)
        if count == 1:
            self._part(0).rename(self._folder / "model.safetensors")
            return
        files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        for number, file in enumerate(files):
            self._part(number).rename(self._folder / file)
        places = {name: file for names, file in zip(self._names, files, strict=True) for name in names}
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(places.items()))}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _write(self) -> None:
        save_file(self._held, self._part(len(self._names)), metadata={"format": "pt"})
        self._names.append(list(self._held))
        self._held = {}

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"


def write_by_first(
    writer: SafetensorsWriter, tensors: Iterable[tuple[str, Tensor]], failure: str, complete: Callable[[], None]
) -> None:
    """Write `tensors` on the first rank, then call `complete` there.

    All ranks iterate over `tensors`, because iteration gathers them. Raises UserError on all ranks, with the sentence
    `failure` and the reason, if writing fails.
    """
    errors: list[Exception] = []
    for name, tensor in tensors:
        if ranks.is_first() and not errors:  # after an error, keep iterating: the other ranks wait for it
            try:
                writer.add(name, tensor)
            except (OSError, SafetensorError) as error:
                errors.append(error)

    def finish() -> None:
        if errors:
            raise errors[0]
        writer.finish()
        complete()

    _on_first(finish, failure)


def _on_first(write: Callable[[], None], failure: str) -> None:
    """Call `write` on the first rank; it must not communicate. Raises UserError on all ranks if it fails."""

    def explained() -> None:
        try:
            write()
        except (
            OSError,
            RuntimeError,
            ValueError,
            SafetensorError,
        ) as error:  # of Python, torch, transformers, safetensors
            raise UserError(f"{failure}: {first_line(error)}") from error

    ranks.on_first(explained)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a sharded model and its tokenizer as `save_pretrained` does; with LoRA, only the adapters.

    Each layer is gathered separately and written by the first rank. Raises UserError if this fails.
    """
    failure = f"the weights cannot be written to {folder}"
    if hasattr(model, "peft_config"):
        adapters = {name: whole(value).cpu() for name, value in model.state_dict().items() if "lora_" in name}
        _on_first(lambda: model.save_pretrained(folder, state_dict=adapters, safe_serialization=True), failure)
    else:
        configs = partial(_save_configs, model, folder)
        write_by_first(SafetensorsWriter(folder), _published_weights(model), failure, configs)
    _on_first(lambda: tokenizer.save_pretrained(folder), failure)


@torch.no_grad()  # as a decorator, it is inactive while the caller handles a yielded value
def _published_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield gathered weights under the names of the published checkpoint, which may differ from those in memory."""
    named = dict(model.named_parameters())  # tied ones once
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - named.keys()
    kept = {name: value for name, value in model.state_dict().items() if name not in tied}
    for _, names in itertools.groupby(kept, lambda name: found[0] if (found := LAYER.match(name)) else name):
        layer = {name: whole(kept[name].detach()) for name in names}
        yield from revert_weight_conversion(model, layer).items()


def _save_configs(model: Any, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # fully_shard adds a prefix to the class name
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def save_optimizer(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> list[Path]:
    """Write each rank's part of the optimizer state; return the files that this rank has written.

    The list is empty before the first step. Raises UserError if a rank fails.
    """
    if not optimizer.state:
        return []
    try:
        dcp.save(get_optimizer_state_dict(model, optimizer, options=FLAT), checkpoint_id=folder)
    except CheckpointException as error:
        raise _explained(error, f"the optimizer's state cannot be written to {folder}") from error
    return sorted(folder.glob(f"__{ranks.rank()}_*.distcp"))


def load_optimizer_parts(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Read the optimizer state that `save_optimizer` wrote, with any number of ranks.

    Weights that have had no gradient, such as those of an unused vision tower, have no state there and get none. Raises
    UserError if the state cannot be read, and ValueError if it is of other weights.
    """
    state = get_optimizer_state_dict(model, optimizer, options=FLAT)  # of all weights, so that it shows what to read
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    if other := sorted(key for key in stored.keys() - state.keys() if key.startswith("state.")):
        raise ValueError(f"it has the state of weights that the model does not have, such as {_parameter(other[0])}")
    unused = {name for name, _ in model.named_parameters() if f"state.{name}.step" not in stored}
    to_read = {key: value for key, value in state.items() if _parameter(key) not in unused or key in stored}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns if there is only one process
        try:
            dcp.load(to_read, checkpoint_id=folder)
        except CheckpointException as error:
            raise _explained(error, f"the optimizer's state in {folder} cannot be used") from error
    set_optimizer_state_dict(model, optimizer, state | to_read, options=FLAT)
    for name, parameter in model.named_parameters():
        if name in unused:
            optimizer.state.pop(parameter, None)


def _parameter(key: str) -> str:
    """Return the name of the parameter in a key of the flat optimizer state, such as `state.NAME.exp_avg`."""
    return key.partition(".")[2].rpartition(".")[0]


def shard_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load optimizer state that a single process saved, and shard it over the ranks."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state["state"].items():
        for name, value in values.items():
            if value.shape == parameters[number].shape:
                values[name] = shard_like(value, parameters[number])
    optimizer.load_state_dict(state)


def _explained(error: CheckpointException, sentence: str) -> BaseException:
    """Return a UserError for the failure on the lowest rank that failed, or the failure itself if it is out of memory."""
    rank, (cause, _) = min(error.failures.items())
    if says_memory_is_full(cause):
        return cause
    return UserError(f"{sentence}: rank {rank}: {first_line(cause)}")
