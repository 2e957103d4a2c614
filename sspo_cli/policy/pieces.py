"""The text of each single token, for display."""

import re
from collections.abc import Sequence
from typing import Any

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of byte-fallback tokenizers (Llama 2, Mistral)
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # a tokenizer's text for bytes that are not a complete character
WAIT = 16  # tokens, more than the bytes of any character; limits the cost if a policy writes only invalid bytes


def token_pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; joined, the pieces are the text of all tokens.

    If a character is split over several tokens, it belongs to the last of them, and the pieces of the others are empty.
    """
    alone = [tokenizer.decode([token], skip_special_tokens=False) for token in token_ids]
    if "".join(alone) == tokenizer.decode(token_ids, skip_special_tokens=False):
        return alone  # no character is split, and no token's text depends on earlier tokens
    names = tokenizer.convert_ids_to_tokens(token_ids)
    is_byte = [BYTE.fullmatch(name or "") is not None for name in names]
    pieces: list[str] = []
    context = done = 0  # tokens before `done` have pieces; those from `context` on are decoded with the next
    before = ""
    for end in range(1, len(token_ids) + 1):
        if is_byte[end - 1] and end < len(token_ids) and is_byte[end]:
            pieces.append("")  # adjacent bytes are decoded together; one invalid byte makes all of them invalid
            continue
        text = tokenizer.decode(token_ids[context:end], skip_special_tokens=False)
        if text.endswith(INCOMPLETE) and end < len(token_ids) and end - done < WAIT:
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        context, done = done, end
        before = tokenizer.decode(token_ids[context:done], skip_special_tokens=False)
    return pieces
