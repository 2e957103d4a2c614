"""The text of each token, for a reader who looks at single tokens."""

import re
from collections.abc import Sequence
from typing import Any

BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token of byte-fallback tokenizers (Llama 2, Mistral)
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for bytes that are no character, or not one yet
WAIT = 16  # tokens: more than any character's bytes, so that a policy stuck on stray bytes costs no more than another


def token_pieces(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """Split the text by what each token adds to the text of those before it; the pieces joined are the text of all.

    Of a character that is split over several tokens, the last one adds it and the others add nothing.
    """
    alone = [tokenizer.decode([token], skip_special_tokens=False) for token in token_ids]
    if "".join(alone) == tokenizer.decode(token_ids, skip_special_tokens=False):
        return alone  # no character is split, and no token's text depends on those before it
    names = tokenizer.convert_ids_to_tokens(token_ids)
    is_byte = [BYTE.fullmatch(name or "") is not None for name in names]
    pieces: list[str] = []
    context = done = 0  # tokens before `done` have their pieces; those from `context` on are decoded with the next
    before = ""
    for end in range(1, len(token_ids) + 1):
        if is_byte[end - 1] and end < len(token_ids) and is_byte[end]:
            pieces.append("")  # bytes that follow one another are read together: with a stray one, none is a character
            continue
        text = tokenizer.decode(token_ids[context:end], skip_special_tokens=False)
        if text.endswith(INCOMPLETE) and end < len(token_ids) and end - done < WAIT:
            pieces.append("")
            continue
        pieces.append(text[len(before) :])
        context, done = done, end
        before = tokenizer.decode(token_ids[context:done], skip_special_tokens=False)
    return pieces
