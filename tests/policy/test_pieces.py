"""Tests of the text of single tokens, when characters are split over several tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sspo_cli.policy.pieces import token_pieces
from sspo_cli.policy.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # one token per byte


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("<think>1+2</think>", ["<think>", "1", "+", "2", "</think>"]),
        (" a  b", [" ", "a", " ", " ", "b"]),
        ("é=日🙂!", ["", "é", "=", "", "", "日", "", "", "", "🙂", "!"]),
        ("🙂🙂", ["", "", "", "🙂"] * 2),
    ],
)
def test_a_split_character_stands_at_its_last_token(text, pieces):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert token_pieces(TOKENIZER, ids) == pieces


def test_bytes_that_are_no_characters_are_reported_at_the_end_at_the_latest():
    ids = TOKENIZER.encode("1日2", add_special_tokens=False)
    for cut in (ids[:2], ids[:3], [ids[2], ids[0]], [*ids[1:3], ids[1], ids[4]], ids[1:2] * 50, ids[2:3] * 50):
        pieces = token_pieces(TOKENIZER, cut)
        assert len(pieces) == len(cut)
        assert "".join(pieces) == TOKENIZER.decode(cut)


def test_pieces_of_a_tokenizer_that_writes_spaces_before_words():
    """Like Llama 2's, this tokenizer drops the space before a token that is decoded alone, and before a text's first token."""

    class Words:
        words = ("▁the", "▁cat", "s", "▁sat")

        def convert_ids_to_tokens(self, ids):
            return [self.words[i] for i in ids]

        def decode(self, ids, skip_special_tokens):
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert token_pieces(Words(), [0, 1, 2, 3]) == ["the", " cat", "s", " sat"]


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.mark.parametrize(
    "text",
    ["1日2", "日本", "é🙂 the", "the é", b"\xe6\x97", b"\xe6\x97\xa5\xff", b"a\xff\xe6\x97\xa5b", b"\xff" * 40],
    ids=str,
)
def test_pieces_of_a_byte_fallback_tokenizer_join_to_the_text(text):
    """Check byte tokens, which Llama 2 and Mistral use for other text; a stray byte makes the bytes around it unreadable."""
    words = ["<unk>", *BYTES, "▁", "▁the", "a", "b", "1", "2"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    data = text if isinstance(text, bytes) else text.encode()
    ids = [vocabulary["▁the"]]
    ids += [vocabulary[chr(byte)] if chr(byte) in "ab12" else vocabulary[BYTES[byte]] for byte in data]
    for end in range(1, len(ids) + 1):
        pieces = token_pieces(tokenizer, ids[:end])
        assert len(pieces) == end
        assert "".join(pieces) == tokenizer.decode(ids[:end])
