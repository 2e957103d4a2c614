"""Check before a run that sspo computes a model correctly: first a small random model of the same kind, then the model."""

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

ROOMS = ("policy", "rollout", "model_check")  # packages whose code affects the results of the check
REAL_TOKENS = 64  # most tokens of each row
LIMIT: TypeAdapter[Limit | None] = TypeAdapter(Limit | None)


def check_structure(
    options: ModelOptions, note: Callable[[str], object], *, samples: bool, folder: Path | None = None
) -> Limit | None:
    """Check a small random model with the same structure as the run's model, before any weights are downloaded.

    note     function that is called with an explanation if no small model can be made
    samples  also check the torch sampler's log-probabilities
    folder   checkpoint that is opened instead of the original model

    Returns the sequence length up to which the model is computed correctly (pass it to `check_reach`), or None if there is no
    such limit or if nothing could be checked. Results are cached in the user's cache folder. Raises UserError if the model's
    config cannot be read, or if the policy's or the sampler's log-probabilities differ from the model's own.
    """
    if options.name is None:
        return None  # the embedded model needs no check
    source = str(folder) if folder and not (folder / "adapter_config.json").is_file() else options.name
    config = load_config(source, options.revision if source == options.name else None)
    computed = options.model_dump_json(include={"attention", "gradient_checkpointing", "lora"})
    path = _cache() / f"{_key(config.to_json_string(), computed, str(samples))}.json"
    try:
        return LIMIT.validate_json(path.read_bytes())
    except (OSError, ValueError):
        pass  # not cached yet
    try:
        limit = check_small(source, config, options, samples=samples)
    except NotShrunk as error:
        note(f"no small model of {source} can be made ({error}), so only the full model is checked")
        return None
    with suppress(OSError, UserError):  # if the cache is not writable, every run repeats the check
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, LIMIT.dump_json(limit))
    return limit


def check_reach(limit: Limit | None, reach: int, name: str) -> None:
    """Raise UserError if sequences can be longer than `limit`, up to which the model is computed correctly.

    reach  length of the longest possible sequence: prompt and completion, in tokens
    name   name of the model, for the message
    """
    if limit and reach > limit.tokens:
        raise UserError(
            f"sspo does not compute {name} correctly for texts longer than {limit.name} = {limit.tokens} tokens, but up to "
            f"{reach} are requested: {limit.text}; keep prompt and max_new_tokens together within {limit.tokens}, or choose "
            "another model"
        )


def check_model(policy: Policy, *, samples: bool) -> None:
    """Check a policy with its actual weights, in the compute dtype of the run.

    samples  also check the torch sampler's log-probabilities

    Raises UserError if a weight is not finite, or if the policy's or the sampler's log-probabilities differ from the model's
    own.
    """
    name = getattr(policy.model.config, "name_or_path", "") or type(policy.model).__name__
    _check_finite(policy, name)
    try:
        wrong = compare(policy, _real_rows(policy), samples=samples)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the model's own code may raise anything
        by_compiler = isinstance(error, torch._dynamo.exc.TorchDynamoException)
        if by_compiler or says_memory_is_full(error) or ranks.says_lost(error):
            raise
        raise UserError(
            f"sspo cannot compute {name}: {type(error).__name__}: {first_line(error)}; choose another model"
        ) from None
    if wrong:
        raise UserError(f"sspo does not compute {name} correctly in {policy.dtype}: {wrong.text}; {advice(wrong)}")


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
            "or download the weights again"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    return not weight.numel() or all(x.isfinite() for x in torch.aminmax(weight))


def _real_rows(policy: Policy) -> list[Row]:
    """Make two rows of at most REAL_TOKENS tokens from a fixed text, with prompts of unequal length."""
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
    """Return a hash of everything that affects a result: `parts`, the code in ROOMS, and the versions of the libraries."""
    digest = xxhash.xxh3_128("\n".join((*parts, torch.__version__, transformers.__version__)).encode())
    for room in ROOMS:
        for file in sorted((Path(sspo_cli.__file__).parent / room).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
