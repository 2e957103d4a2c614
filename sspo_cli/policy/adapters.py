"""LoRA adapters by peft. Layers on which adapters would not be trained correctly are refused."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sspo_cli.config import LoraOptions
from sspo_cli.errors import UserError, did_you_mean, first_line


def add_adapters(model: Any, options: LoraOptions, saved: Path | None) -> Any:
    """Wrap the model with adapters, loaded from the folder `saved`, or new and initialized from `options.seed` alone.

    Raises UserError if peft is not installed, if a target does not exist or cannot have an adapter, or if the saved adapter
    does not fit this model.
    """
    try:
        import peft
    except ImportError:
        raise UserError("model.lora needs peft; install it with `pip install peft`") from None
    if not isinstance(options.targets, str):
        _check_targets(model, options.targets)
    try:
        if saved is not None:
            return _load_adapter(peft, model, saved)
        config = peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=0.0,
            target_modules=options.targets,
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            return peft.get_peft_model(model, config)
    except UserError:
        raise
    except Exception as error:  # peft and the model's own modules may raise anything
        raise UserError(
            f"adapters cannot be put on model.lora.targets = {_written(options.targets)} of {type(model).__name__}: "
            f"{first_line(error)}; name other linear layers, such as {_examples(model, str(error))}"
        ) from None


def _load_adapter(peft: Any, model: Any, saved: Path) -> Any:
    from safetensors import safe_open

    model = peft.PeftModel.from_pretrained(model, str(saved), is_trainable=True)
    needed = set(peft.get_peft_model_state_dict(model))
    with safe_open(saved / "adapter_model.safetensors", framework="pt") as file:
        missing = sorted(needed - set(file.keys()))
    if missing:
        raise UserError(
            f"the adapter in {saved} does not fit this model: {len(missing)} of its {len(needed)} tensors are missing "
            f"({', '.join(missing[:3])}) and would be initialized randomly; use the model and the model.lora that it was saved "
            "with"
        )
    return model


def _check_targets(model: Any, targets: list[str]) -> None:
    """Raise UserError for a target that matches no layer, and for layers whose adapters would not be trained correctly."""
    matched = {target: _matching(model, target) for target in targets}
    for target, modules in matched.items():
        if not modules:
            linear = {
                name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)
            }
            raise UserError(
                f"model.lora.targets names {target}, but {type(model).__name__} has no such layer"
                f"{did_you_mean(target, sorted(linear))}"
            )
        for name, module in modules.items():
            if module is model.get_output_embeddings():
                raise UserError(
                    f"an adapter on the vocabulary projection ({name}) would not be trained; leave {target} out of "
                    "model.lora.targets"
                )
            if module is model.get_input_embeddings() and _is_tied(model):
                raise UserError(
                    f"an adapter on {name}, which is tied to the vocabulary projection of {type(model).__name__}, would change "
                    f"only one of the two; leave {target} out of model.lora.targets"
                )


def _matching(model: Any, target: str) -> dict[str, nn.Module]:
    """Return the modules that peft selects by `target`: modules whose path is `target` or ends in `.target`."""
    modules = dict(model.named_modules())
    return {name: module for name, module in modules.items() if name == target or name.endswith(f".{target}")}


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _examples(model: Any, refused: str) -> str:
    """List a few linear layers, attention layers first, without the layers named in the error message `refused`."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = {name for name in names if f"'{name}'" not in refused}
    attention = sorted(names & {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj"})
    return ", ".join(attention or sorted(names)[:3]) or "none that it has"


def _written(targets: list[str] | str) -> str:
    return targets if isinstance(targets, str) else f"[{', '.join(targets)}]"
