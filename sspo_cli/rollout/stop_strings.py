"""Detection of stop strings in sampled tokens. A string may span several tokens, and may end inside a token (`>.`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StopStrings:
    """Finds the rows whose last token completes a stop string; decodes a row only if its last token may end a string."""

    def __init__(self, strings: Sequence[str], tokenizer: Any, words: int) -> None:
        """Prepare the search in a vocabulary of `words` tokens. The strings must end in ASCII characters."""
        self._strings = strings
        self._tokenizer = tokenizer
        # A token has at least one byte, so a string has at most as many tokens as bytes. One more token is decoded, because
        # the first token of a text may be decoded differently.
        self._reach = max(len(string.encode()) for string in strings) + 1
        self._candidates = _tokens_with({string[-1] for string in strings}, tokenizer, words)

    def completed(self, written: Tensor, rows: Tensor, step: int) -> Tensor:
        """Report for each row whether its token number `step` completes a string: written [B, T], rows [R] -> bool [R]."""
        mask = self._candidates.to(written.device)[written[rows, step]]
        start = max(0, step + 1 - self._reach)
        for index in mask.nonzero().flatten().tolist():
            tail = self._tokenizer.decode(written[rows[index], start : step + 1].tolist(), skip_special_tokens=False)
            mask[index] = any(string in tail for string in self._strings)
        return mask


def _tokens_with(characters: set[str], tokenizer: Any, words: int) -> Tensor:
    """Return a mask [words] of the tokens whose names contain one of the characters.

    Marking too many tokens is harmless, because the text of marked tokens is decoded and compared.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(words)))
    return torch.tensor([bool(name) and not characters.isdisjoint(name) for name in names])
