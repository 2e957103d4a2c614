"""Check of a model's structure on a small random model of the same kind, in float32, before weights are downloaded."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from sspo_cli.config import LoraOptions, ModelOptions
from sspo_cli.errors import UserError, first_line, says_memory_is_full
from sspo_cli.model_check.compare import Difference, Row, attention, compare, compare_gradients, literal
from sspo_cli.model_check.shrink import FIRST_TOKEN, WORDS, move_switches, shrink, switches
from sspo_cli.policy.model import Policy, build_policy
from sspo_cli.policy.pretrained import choose_attention, model_class

CPU = torch.device("cpu")
TOKENS = 10  # length of the longest completions in the check
LARGEST = 50e6  # most weights of the small model, to limit time and memory


class NotShrunk(Exception):
    """Raised if no small model can be made from a config."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A length beyond which a model is not computed correctly.

    tokens  longest sequence that is computed correctly, in tokens
    name    option of the model's config that determines the limit
    text    description of the difference in longer sequences
    """

    tokens: int
    name: str
    text: str


class _NoText:
    """A stand-in for a tokenizer. It decodes all tokens to an empty string."""

    eos_token_id = FIRST_TOKEN
    pad_token_id = FIRST_TOKEN

    def decode(self, *args: Any, **options: Any) -> str:
        return ""


def rows_to_check() -> list[Row]:
    """Make rows of random tokens with two prompts of unequal length. Only one row is shorter than `SWITCHED`."""
    draw = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(FIRST_TOKEN, WORDS, (length,), generator=draw).tolist()

    short, long = ids(3), ids(13)
    return [Row(short, ids(3)), Row(short, ids(TOKENS)), Row(long, ids(TOKENS)), Row(long, ids(2))]


def check_small(source: str, config: PreTrainedConfig, options: ModelOptions, *, samples: bool) -> Limit | None:
    """Check the structure of a model on a small random model.

    Returns the length up to which the model is computed correctly, or None if there is no such limit. Raises UserError if the
    results differ from the model's own even for short sequences, and NotShrunk if no small model can be made.
    """
    small, lengths = shrink(config), switches(config)
    wrong = _difference(source, move_switches(small, ()), options, samples)
    if wrong:
        raise UserError(f"{source} is not computed correctly by sspo: {wrong.text}; {advice(wrong, options.lora)}")
    across = _difference(source, move_switches(small, lengths), options, samples) if lengths else None
    if across is None:
        return None
    for name in sorted(lengths, key=lambda name: lengths[name]):
        if wrong := _difference(source, move_switches(small, [name]), options, samples):
            return Limit(lengths[name], name, wrong.text)
    return Limit(min(lengths.values()), ", ".join(sorted(lengths)), across.text)


def advice(difference: Difference, lora: LoraOptions | None = None) -> str:
    """Return a remedy for a difference, as a clause for an error message. `lora` is None if all weights are trained."""
    if difference.of_sampler:
        return "sample with vLLM (rollout.engine=vllm) or choose another model"
    return "set model.lora.targets to other layers or choose another model" if lora else "choose another model"


def _difference(source: str, config: PreTrainedConfig, options: ModelOptions, samples: bool) -> Difference | None:
    policy, rows = _random_policy(source, config, options), rows_to_check()
    try:
        return (
            compare(policy, rows, samples=samples)
            or compare_gradients(policy, rows)
            or _compare_attention(policy, rows[2])
        )
    except Exception as error:  # the model's own code may raise anything
        if says_memory_is_full(error):
            raise
        return Difference(f"it fails with {type(error).__name__}: {first_line(error)}", of_sampler=_in_sampler(error))


@torch.no_grad()
def _compare_attention(policy: Policy, row: Row) -> Difference | None:
    """Compare the policy's attention implementation with eager attention, which each model defines itself."""
    expected = literal(policy, row)
    with attention(policy.model, "eager"):
        eager = literal(policy, row)
    distance = (expected - eager).abs().max().item()
    if distance <= 1e-3 * eager.abs().max().item():
        return None
    return Difference(
        f"with the model's own attention (model.attention=eager), log-probabilities differ by {distance:.2g} nats"
    )


def _in_sampler(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_name == "_sample_rows":
            return True
        trace = trace.tb_next
    return False


def _random_policy(source: str, config: PreTrainedConfig, options: ModelOptions) -> Policy:
    """Make a policy with random weights. Its token distributions are far from uniform, so that errors become visible."""
    kind = model_class(source, config)
    wanted, _ = choose_attention(kind, "sdpa" if options.attention == "flash_attention_2" else options.attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            if kind.config_class is config.sub_configs.get("text_config"):  # as AutoModelForCausalLM does
                config = config.get_text_config()
            with torch.device("meta"):
                size = sum(p.numel() for p in kind._from_config(config, dtype=torch.float32).parameters())
            if size > LARGEST:
                raise NotShrunk(f"it would still have {size / 1e6:.0f} million weights")
            model = kind._from_config(config, dtype=torch.float32, attn_implementation=wanted)
            model.generation_config.eos_token_id = list(range(FIRST_TOKEN, FIRST_TOKEN + WORDS // 6))
            _spread_out(model)
            model.eval()(input_ids=torch.full((1, 3), FIRST_TOKEN), use_cache=False)
        except Exception as error:  # the model's own code may raise any exception
            raise NotShrunk(first_line(error)) from None
        lora = _lora_of_small(options.lora, model)
        plain = {"kernels": "torch", "lora": lora, "dtype": "float32", "weights": "float32", "attention": wanted}
        policy = build_policy(model, _NoText(), options.model_copy(update=plain), CPU, torch.float32)
        if lora:  # new adapters have no effect, which would hide an error
            for parameter in policy.parameters:
                nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5)
    return policy


def _lora_of_small(lora: LoraOptions | None, model: nn.Module) -> LoraOptions | None:
    """Return the adapter options for a small model. Targets that are module paths are reduced to their last components."""
    if lora is None or isinstance(lora.targets, str):
        return lora
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [target for target in (path.rpartition(".")[2] for path in lora.targets) if target in names]
    return lora.model_copy(update={"targets": targets}) if targets else None


@torch.no_grad()
def _spread_out(model: nn.Module) -> None:
    """Scale each weight matrix to a standard deviation of 2 / sqrt(input width), so that logits are not close to uniform."""
    for parameter in model.parameters():
        if parameter.ndim < 2 or not parameter.is_floating_point():
            continue
        deviation, mean = parameter.std().item(), parameter.mean().abs().item()
        if deviation > 0 and mean < 0.3 * deviation:  # initialized with mean 0, unlike a decay or a scale
            parameter.mul_(2.0 / parameter.shape[-1] ** 0.5 / deviation)
