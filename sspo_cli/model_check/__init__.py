"""Is a model computed right here? Asked before anything is spent, of its structure and of its weights."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import transformers
import xxhash
from pydantic import TypeAdapter

import sspo_cli
from sspo_cli import ranks
from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, first_line, says_memory_is_full
from sspo_cli.model_check.compare import Row, compare
from sspo_cli.model_check.structure import Limit, NotShrunk, advice, check_small
from sspo_cli.policy.model import Policy
from sspo_cli.policy.pretrained import load_config
from sspo_cli.policy.sharding import local
from sspo_cli.tracking.files import write_bytes_atomic

ROOMS = ("policy", "rollout", "model_check")  # of the program, that compute what is checked
REAL_TOKENS = 64  # of each of two rows
LIMIT: TypeAdapter[Limit | None] = TypeAdapter(Limit | None)


def check_structure(
    options: ModelOptions, note: Callable[[str], object], *, samples: bool, folder: Path | None = None
) -> Limit | None:
    """Check a small random model of the same kind; its weights are not needed. What was right is kept in the user's cache.

    note     called with a sentence if no small model can be made
    samples  the torch sampler is used: check its log-probabilities
    folder   a checkpoint that is opened instead of the model's own weights

    Returns the length from which on it is not computed right, for `check_reach`. Raises UserError if the model's config cannot
    be read, or something is not computed as the model itself does.
    """
    if options.name is None:
        return None  # the embedded model, which is small itself and of a kind that is known
    source = str(folder) if folder and not (folder / "adapter_config.json").is_file() else options.name
    config = load_config(source, options.revision if source == options.name else None)
    computed = options.model_dump_json(include={"attention", "gradient_checkpointing", "lora"})
    place = _cache() / f"{_key(config.to_json_string(), computed, str(samples))}.json"
    try:
        return LIMIT.validate_json(place.read_bytes())
    except (OSError, ValueError):
        pass  # not checked yet
    try:
        limit = check_small(source, config, options, samples=samples)
    except NotShrunk as error:
        note(f"no small model of {source} can be made ({error}); it is checked on its weights alone")
        return None
    with suppress(OSError, UserError):  # without a place for the cache, every run checks again
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(place, LIMIT.dump_json(limit))
    return limit


def check_reach(limit: Limit | None, reach: int, name: str) -> None:
    """Raise UserError if a prompt and its completion may have more tokens together, `reach`, than model `name` is right for."""
    if limit and reach > limit.tokens:
        raise UserError(
            f"{name} is not computed right for texts longer than {limit.name} = {limit.tokens} tokens, and up to {reach} are "
            f"asked for: {limit.text}; keep prompt and max_new_tokens together within {limit.tokens}, or choose another model"
        )


def check_model(policy: Policy, *, samples: bool) -> None:
    """Check a model on its own weights, in the dtype and the mode of the run; the torch sampler too if that `samples`.

    Raises UserError if a weight is not finite, or if something is not computed as the model itself does.
    """
    name = getattr(policy.model.config, "name_or_path", "") or type(policy.model).__name__
    _check_finite(policy, name)
    try:
        wrong = compare(policy, _real_rows(policy), samples=samples)
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
    mine = [
        key
        for key, weight in policy.model.named_parameters()
        if weight.is_floating_point() and not _is_finite(local(weight))
    ]
    if bad := list(dict.fromkeys(ranks.gather(lambda: mine))):
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"the weights of {name} are not finite (NaN or infinite in {', '.join(bad[:3])}{more}); use an earlier checkpoint, "
            "or fetch them again"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    return not weight.numel() or all(x.isfinite() for x in torch.aminmax(weight))


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
