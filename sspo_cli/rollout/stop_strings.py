"""Strings that end a turn, looked for in sampled tokens. A string need be no token, and may end inside one (`>.`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StopStrings:
    """Finds the rows whose last token completes one of the strings, without decoding at every token."""

    def __init__(self, strings: Sequence[str], tokenizer: Any, words: int) -> None:
        """Take `words`, the size of the vocabulary that is sampled from. The strings end in ASCII characters."""
        self._strings = strings
        self._tokenizer = tokenizer
        # The tokens of a string have a byte of it each. One more holds what the decoding changes at a text's beginning.
        self._reach = max(len(string.encode()) for string in strings) + 1
        self._candidates = _tokens_with({string[-1] for string in strings}, tokenizer, words)

    def completed(self, written: Tensor, rows: Tensor, step: int) -> Tensor:
        """Report of each of the `rows` [R] of `written` [B, T] whether its token number `step` completes a string: [R] bool."""
        found = self._candidates.to(written.device)[written[rows, step]]
        start = max(0, step + 1 - self._reach)
        for place in found.nonzero().flatten().tolist():
            tail = self._tokenizer.decode(written[rows[place], start : step + 1].tolist(), skip_special_tokens=False)
            found[place] = any(string in tail for string in self._strings)
        return found


def _tokens_with(characters: set[str], tokenizer: Any, words: int) -> Tensor:
    """Report of each token whether its name has one of the characters: [words] bool. Too many are no harm."""
    names = tokenizer.convert_ids_to_tokens(list(range(words)))
    return torch.tensor([bool(name) and not characters.isdisjoint(name) for name in names])
