"""A micro-batch packed into one row of tokens, without padding; each prompt is stored once for all of its completions.

The layers of the model process this row. Only attention unpacks it, into prompts [P, S] and completions [B, T]; a completion
attends to the keys and values of its prompt and to its own. Gradients flow through the shared keys and values.

Axes: N tokens of the row, M of them in prompts; P prompts of at most S tokens; B completions of at most T input tokens (the last
token of a completion is only predicted).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sspo_cli.policy.batch import Batch

ATTENTION = "shared_prompts"  # transformers' "sdpa" with support for a Packing


@dataclass(frozen=True, slots=True)
class Packing:
    """The layout of a packed row.

    tokens       [1, N] int64        prompts, then completions
    positions    [1, N] int64        position of each token in its prompt with completion
    prompts      [M], [M]            row and column of each prompt token in a tensor [P, S] = `prompts_shape`
    completions  [N-M], [N-M]        row and column of each completion token in a tensor [B, T] = `completions_shape`
    prompt_of    [B]                 prompt of each completion
    mask         [B, 1, T, S+T]      attention mask of the completions: 0 or -inf, in the compute dtype
    before       [B, T+1]            index, in the packed row, of the token before each completion token, which predicts it
    """

    tokens: Tensor
    positions: Tensor
    prompts: tuple[Tensor, Tensor]
    prompts_shape: tuple[int, int]
    completions: tuple[Tensor, Tensor]
    completions_shape: tuple[int, int]
    prompt_of: Tensor
    mask: Tensor
    before: Tensor


def pack(batch: Batch, dtype: torch.dtype) -> Packing:
    """Pack the prompts and completions of the batch, with a mask in `dtype`."""
    device = batch.tokens.device
    groups, prompt_of = batch.groups.unique(return_inverse=True)
    row_of = torch.empty_like(groups)
    row_of[prompt_of] = torch.arange(len(batch), device=device)  # one row of each group; all have the same prompt
    prompt_lengths, inputs = batch.prompt_lengths[row_of], batch.lengths - 1
    prompt_columns = torch.arange(int(prompt_lengths.max()), device=device)
    columns = torch.arange(max(1, int(inputs.max())), device=device)  # sdpa refuses an empty query
    in_prompt = prompt_columns < prompt_lengths.unsqueeze(1)  # [P, S]
    in_completion = columns < inputs.unsqueeze(1)  # [B, T]
    prompt, prompt_column = in_prompt.nonzero(as_tuple=True)
    row, column = in_completion.nonzero(as_tuple=True)

    positions = torch.cat([prompt_column, batch.prompt_lengths[row] + column])
    visible = torch.cat(
        [
            in_prompt[prompt_of].unsqueeze(1).expand(-1, len(columns), -1),
            (columns <= columns.unsqueeze(1)).expand(len(batch), -1, -1),
        ],
        dim=2,
    )
    first = len(prompt) + inputs.cumsum(dim=0) - inputs  # index of each completion's first token
    last_of_prompt = prompt_lengths.cumsum(dim=0) - 1
    return Packing(
        tokens=batch.tokens[torch.cat([row_of[prompt], row]), positions].unsqueeze(0),
        positions=positions.unsqueeze(0),
        prompts=(prompt, prompt_column),
        prompts_shape=(len(groups), len(prompt_columns)),
        completions=(row, column),
        completions_shape=(len(batch), len(columns)),
        prompt_of=prompt_of,
        mask=torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf).unsqueeze(1),
        before=torch.cat([last_of_prompt[prompt_of].unsqueeze(1), first.unsqueeze(1) + columns], dim=1),
    )


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Report whether every layer uses full attention through transformers' attention interface.

    Sliding windows and recurrent layers are not supported.
    """
    return model._supports_attention_backend and all(
        type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention: query, key, value [1, heads, N, width] -> [1, N, heads, width]; plain "sdpa" without a packing."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # Cast to the compute dtype, because rotary embeddings return float32 even under autocast.
    tokens = [x[0].transpose(0, 1).to(packing.mask.dtype) for x in (query, key, value)]  # [N, heads, width] each
    split = [len(packing.prompts[0]), len(packing.completions[0])]
    of_prompts, of_completions = zip(*(x.split(split) for x in tokens), strict=True)
    query, key, value = (_scatter(x, packing.prompts, packing.prompts_shape) for x in of_prompts)
    prompts, _ = sdpa_attention_forward(module, query, key, value, None, **options)  # [P, S, heads, width]
    query, own_key, own_value = (_scatter(x, packing.completions, packing.completions_shape) for x in of_completions)
    key = torch.cat([key[packing.prompt_of], own_key], dim=2)
    value = torch.cat([value[packing.prompt_of], own_value], dim=2)
    completions, _ = sdpa_attention_forward(module, query, key, value, packing.mask, **options)
    return torch.cat([prompts[packing.prompts], completions[packing.completions]]).unsqueeze(0), None


def _scatter(tokens: Tensor, places: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Tensor:
    """Scatter tokens [M, heads, width] to their places in [P, heads, S, width], with zeros elsewhere."""
    return tokens.new_zeros(*shape, *tokens.shape[1:]).index_put(places, tokens).transpose(1, 2)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
