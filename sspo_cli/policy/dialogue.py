"""The tokens that a chat template writes between two turns of the policy.

The policy's own tokens are stored as sampled, never decoded and encoded again. The tokens between two turns are found once, by
rendering marker texts. Answers of an environment are encoded as plain text, so that a program cannot print control tokens.
"""

from dataclasses import dataclass
from typing import Any

from sspo_cli.environments.actions import STOP
from sspo_cli.errors import UserError
from sspo_cli.policy.model import Policy, check_ids
from sspo_cli.tasks.prompts import THINKING, opening_of, render_turns

QUESTION, TURN, ANSWER = "Qz7question", "Qz7turn", "Qz7answer"  # marker texts that no template contains


@dataclass(frozen=True)
class Dialogue:
    """The frame that a chat template puts around an answer to the policy.

    vocabulary  number of token ids that the model can read
    end_ids     ids that end a sequence
    before      tokens from the end of the policy's turn to the answer; the first is one of `end_ids`
    after       tokens from the answer to the policy's next turn
    opening     text with which the template opens the policy's next turn (`<think>`, or nothing)
    """

    tokenizer: Any
    vocabulary: int
    end_ids: list[int]
    before: list[int]
    after: list[int]
    opening: str

    @classmethod
    def of(cls, policy: Policy, thinking: bool) -> "Dialogue":
        """Find the frame of the policy's chat template; `thinking` is as in `render_episode`.

        Raises UserError if the template or the tokenizer does not separate the turns.
        """
        tokenizer = policy.tokenizer
        turns = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": TURN},
            {"role": "user", "content": ANSWER},
        ]
        text = render_turns(tokenizer, turns, "turns of an episode", {THINKING: thinking})
        if text.count(TURN) != 1 or text.count(ANSWER) != 1 or text.find(TURN) > text.find(ANSWER):
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} does not render the turns of a conversation (user, assistant, "
                "user) unchanged and in order; episodes need a template that does"
            )
        between, after = text.partition(TURN)[2].split(ANSWER)
        before = tokenizer.encode(between, add_special_tokens=False)
        if not before or before[0] not in policy.end_ids:
            ends = ", ".join(tokenizer.convert_ids_to_tokens(policy.end_ids))
            raise UserError(
                f"the chat template of {tokenizer.name_or_path} ends a turn by {between[:40]!r}, which does not begin with an "
                f"end-of-sequence token of the model ({ends}), so its turns cannot be distinguished in episodes; add that token "
                "to eos_token_id in generation_config.json, or use another model"
            )
        after_ids = tokenizer.encode(after, add_special_tokens=False)
        dialogue = cls(tokenizer, policy.vocabulary, policy.end_ids, before, after_ids, opening_of(text))
        check_ids([*before, *after_ids], dialogue, f"the chat template of {tokenizer.name_or_path}")
        dialogue._check_answers()
        return dialogue

    def bridge(self, turn: list[int], answer: str) -> list[int]:
        """Return the tokens between `turn` and the next one: end of the turn, `answer`, start of the next turn.

        The end-of-sequence token is left out if the policy wrote it. Raises UserError if the answer has tokens that the model
        does not have.
        """
        before = self.before[1:] if turn and turn[-1] == self.before[0] else self.before
        encoded = self._encode_answer(answer)
        check_ids(encoded, self, "an answer of the environment")
        return [*before, *encoded, *self.after]

    def encode_turn(self, text: str, opening: str) -> list[int]:
        """Encode a turn of a demonstration without `opening`, which the template writes.

        An end-of-sequence token is appended if the turn does not end with a stop string.
        """
        ids = self.tokenizer.encode(text.removeprefix(opening), add_special_tokens=False)
        return ids if text.endswith(STOP) else [*ids, self.before[0]]

    def _encode_answer(self, answer: str) -> list[int]:
        return self.tokenizer.encode(answer, add_special_tokens=False, split_special_tokens=True)

    def _check_answers(self) -> None:
        """Raise UserError if plain text can become a token with which the template ends or begins a turn."""
        tokenizer = self.tokenizer
        added = tokenizer.added_tokens_decoder
        # Words such as `user` may be single tokens and are still text.
        names = {token: added[token].content.strip() for token in self.before if token in added}
        framing = {token for token, name in names.items() if name and not name.isalnum()}
        special = {token for token, description in added.items() if description.special}
        control = framing | special | set(self.end_ids)
        text = " ".join(tokenizer.convert_ids_to_tokens(sorted(control)))
        if made := control & set(self._encode_answer(text)):
            listed = ", ".join(tokenizer.convert_ids_to_tokens(sorted(made)))
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} reads {listed} in plain text as control tokens, so a program's "
                "output could end a turn; mark them as special in its tokenizer.json, or use another model"
            )
