"""The text of single tokens, where characters are split over several of them."""

import pytest

from sspo_cli.policy.pieces import token_pieces
from sspo_cli.policy.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # one token a byte


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


def test_bytes_that_are_no_characters_are_told_at_the_end_at_the_latest():
    ids = TOKENIZER.encode("1日2", add_special_tokens=False)
    for cut in (ids[:2], ids[:3], [ids[2], ids[0]], [*ids[1:3], ids[1], ids[4]], ids[1:2] * 50, ids[2:3] * 50):
        pieces = token_pieces(TOKENIZER, cut)
        assert len(pieces) == len(cut)
        assert "".join(pieces) == TOKENIZER.decode(cut)


def test_pieces_of_a_tokenizer_that_writes_spaces_before_words():
    """As Llama 2 does: a token on its own loses its space, and a text's first one too."""

    class Words:
        words = ("▁the", "▁cat", "s", "▁sat")

        def decode(self, ids, skip_special_tokens):
            return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert token_pieces(Words(), [0, 1, 2, 3]) == ["the", " cat", "s", " sat"]
