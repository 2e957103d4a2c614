"""The structural check: a small random model of the same kind, in float32, before any weights are fetched."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from sspo_cli.config import ModelOptions
from sspo_cli.errors import UserError, first_line
from sspo_cli.model_check.compare import Difference, Row, attention, compare, compare_gradients, literal
from sspo_cli.model_check.shrink import FIRST_TOKEN, NEVER, WORDS, move_switches, shrink, switches
from sspo_cli.policy.model import Policy, build_policy
from sspo_cli.policy.pretrained import choose_attention, model_class

CPU = torch.device("cpu")
TOKENS = 10  # of a completion
SWITCHED = 8  # tokens after which a switch is put: within the rows, so that one of them stays below it


class NotShrunk(Exception):
    """A config of which no small model can be made."""


class _NoText:
    """Stands for a tokenizer: a few ids end a completion, and tokens have no text."""

    eos_token_id = FIRST_TOKEN
    pad_token_id = FIRST_TOKEN

    def decode(self, *args: Any, **options: Any) -> str:
        return ""


def rows_to_check() -> list[Row]:
    """Make rows of two unequal prompts, random words; a short one that stays below a switch, others that pass it."""
    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(FIRST_TOKEN, WORDS, (length,), generator=draw).tolist()

    short, long = ids(3), ids(13)
    return [Row(short, ids(3)), Row(short, ids(TOKENS)), Row(long, ids(TOKENS)), Row(long, ids(2))]


def check_small(
    source: str, config: PreTrainedConfig, options: ModelOptions, reach: int, *, learns: bool, samples: bool
) -> None:
    """Check the structure of a model for texts of up to `reach` tokens.

    Raises UserError if something is not computed as the model itself does, NotShrunk if no small model can be made.
    """
    apart = _difference(source, move_switches(shrink(config), NEVER, 0), options, learns, samples)
    passed = {name: length for name, length in switches(config).items() if length < reach}
    if apart is None and passed:
        across = _difference(source, move_switches(shrink(config), SWITCHED, reach), options, learns, samples)
        if across:
            length = min(passed.values())
            raise UserError(
                f"{source} is not computed right for texts longer than {', '.join(sorted(passed))} = {length} tokens, and up to "
                f"{reach} are asked for: {across.text}; keep prompt and max_new_tokens together within {length}, or choose "
                "another model"
            )
    if apart:
        raise UserError(f"{source} is not computed right by sspo: {apart.text}; {advice(apart)}")


def advice(difference: Difference) -> str:
    """Say what can be done about a difference."""
    if difference.of_sampler:
        return "sample with vLLM (rollout.engine=vllm) or choose another model"
    return "choose another model"


def _difference(
    source: str, config: PreTrainedConfig, options: ModelOptions, learns: bool, samples: bool
) -> Difference | None:
    policy, rows = _random_policy(source, config, options), rows_to_check()
    try:
        difference = compare(policy, rows, learns=learns, samples=samples)
        if not difference and learns:
            difference = compare_gradients(policy, rows)
        if not difference:
            difference = _compare_attention(policy, rows)
    except Exception as error:
        return Difference(f"it fails with {type(error).__name__}: {first_line(error)}", of_sampler=_in_sampler(error))
    return difference


def _compare_attention(policy: Policy, rows: list[Row]) -> Difference | None:
    """Compare the attention of the options with the one that every model defines itself."""
    with torch.no_grad():
        expected = literal(policy, rows[2])
        with attention(policy.model, "eager"):
            eager = literal(policy, rows[2])
    distance = (expected - eager).abs().max().item()
    if distance <= 1e-3 * eager.abs().max().item():
        return None
    return Difference(f"by its own attention (model.attention=eager) log-probabilities differ by {distance:.2g} nats")


def _in_sampler(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_name == "_sample_rows":
            return True
        trace = trace.tb_next
    return False


def _random_policy(source: str, config: PreTrainedConfig, options: ModelOptions) -> Policy:
    """Make a policy of random weights whose distributions are far from uniform, so that what is wrong shows."""
    kind = model_class(source, config)
    wanted, _ = choose_attention(kind, "sdpa" if options.attention == "flash_attention_2" else options.attention)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind._from_config(config, dtype=torch.float32, attn_implementation=wanted)
            model.generation_config.eos_token_id = list(range(FIRST_TOKEN, FIRST_TOKEN + WORDS // 6))
            _spread_out(model)
            model.eval()(input_ids=torch.full((1, 3), FIRST_TOKEN), use_cache=False)
    except Exception as error:  # of the model's own code
        raise NotShrunk(first_line(error)) from None
    plain = {"kernels": "torch", "lora": None, "dtype": "float32", "weights": "float32", "attention": wanted}
    return build_policy(model, _NoText(), options.model_copy(update=plain), CPU, torch.float32)


@torch.no_grad()
def _spread_out(model: nn.Module) -> None:
    """Scale the matrices so that their products keep the size of their inputs, and the logits get twice that."""
    for parameter in model.parameters():
        if parameter.ndim < 2 or not parameter.is_floating_point():
            continue
        deviation, mean = parameter.std().item(), parameter.mean().abs().item()
        if deviation > 0 and mean < 0.3 * deviation:  # drawn around 0: not a decay or a scale
            parameter.mul_(2.0 / parameter.shape[-1] ** 0.5 / deviation)
