"""Is a model computed right here? Asked before anything is spent, of its structure and of its weights."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import xxhash

import sspo_cli
from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, first_line, says_memory_is_full
from sspo_cli.model_check.compare import Row, compare
from sspo_cli.model_check.structure import NotShrunk, advice, check_small
from sspo_cli.policy.model import Policy
from sspo_cli.policy.pretrained import load_config

ROOMS = ("policy", "rollout", "model_check")  # of the program, that compute what is checked
REAL_TOKENS = 64  # of each of two rows


def check_structure(
    options: ModelOptions,
    reach: int,
    note: Callable[[str], object],
    *,
    learns: bool = True,
    samples: bool = True,
    folder: Path | None = None,
) -> None:
    """Check a small random model of the same kind; its weights are not needed. What was right is kept in the user's cache.

    reach    tokens that a prompt and its completion may have together
    note     called with a sentence if no small model can be made
    learns   the model is trained: check its log-probabilities and gradients in batches
    samples  the torch sampler is used: check its log-probabilities
    folder   a checkpoint that is opened instead of the model's own weights

    Raises UserError if the model's config cannot be read, or something is not computed as the model itself does.
    """
    if options.name is None:
        return  # the embedded model, which is small itself and of a kind that is known
    source = str(folder) if folder and not (folder / "adapter_config.json").is_file() else options.name
    config = load_config(source, options.revision if source == options.name else None)
    computed = options.model_dump(include={"attention", "gradient_checkpointing"})
    key = _key(config.to_json_string(), str(computed), str((reach, learns, samples)))
    place = _cache() / key
    if place.exists():
        return
    try:
        check_small(source, config, options, reach, learns=learns, samples=samples)
    except NotShrunk as error:
        note(f"no small model of {source} can be made ({error}); it is checked on its weights alone")
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    except OSError:
        return  # without a place for the cache, every run checks again


def check_model(policy: Policy, *, learns: bool = True, samples: bool = True) -> None:
    """Check a model on its own weights, in the dtype and the mode of the run.

    Raises UserError if a weight is not finite, or if something is not computed as the model itself does.
    """
    name = getattr(policy.model.config, "name_or_path", "") or type(policy.model).__name__
    _check_finite(policy, name)
    try:
        wrong = compare(policy, _real_rows(policy), learns=learns, samples=samples)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of the model's own code, of every class
        if isinstance(error, torch._dynamo.exc.TorchDynamoException) or says_memory_is_full(error):
            raise
        raise UserError(
            f"{name} cannot be computed by sspo: {type(error).__name__}: {first_line(error)}; choose another model"
        ) from None
    if wrong:
        raise UserError(f"{name} is not computed right by sspo in {policy.dtype}: {wrong.text}; {advice(wrong)}")


@torch.no_grad()
def _check_finite(policy: Policy, name: str) -> None:
    bad = [
        key
        for key, weight in policy.model.named_parameters()
        if weight.is_floating_point() and weight.numel() and not all(x.isfinite() for x in torch.aminmax(weight))
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"the weights of {name} are not finite (NaN or infinite in {', '.join(bad[:3])}{more}); use an earlier checkpoint, "
            "or fetch them again"
        )


def _real_rows(policy: Policy) -> list[Row]:
    """Make two rows of unequal prompts, of words that the tokenizer knows, 64 tokens at most."""
    words = policy.tokenizer.encode(
        "What is 2 + 3 - 4? Think step by step, then answer: 1 + 1 = 2.", add_special_tokens=False
    )
    words = [token for token in words if token < policy.vocabulary] or [0]
    words = (words * REAL_TOKENS)[: 2 * REAL_TOKENS]
    return [Row(words[:5], words[5 : 5 + REAL_TOKENS // 4]), Row(words[7:40], words[40 : 7 + REAL_TOKENS])]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sspo" / "checked-models"


def _key(*parts: str) -> str:
    """Hash what a result depends on: the parts, the program and the libraries."""
    digest = xxhash.xxh3_128("\n".join((*parts, torch.__version__, transformers.__version__)).encode())
    for room in ROOMS:
        for file in sorted((Path(sspo_cli.__file__).parent / room).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
