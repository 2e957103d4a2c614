"""The action of a turn: running code, proposing a solution, or neither."""

import re
from dataclasses import dataclass

CALL, PROPOSAL, NOTHING = "call", "proposal", "nothing"
STOP = ("</execute>", "</solution>")  # a turn ends after the first of these
_TAGS = re.compile(r"</?(?:think|execute|solution)>")
_KINDS = {"<execute>": CALL, "<solution>": PROPOSAL}


@dataclass(frozen=True, slots=True)
class Action:
    """The action of a turn.

    kind         CALL, PROPOSAL or NOTHING
    content      the code or the solution, without the tags
    well_formed  the turn has exactly one action and ends with it, as r_format requires
    """

    kind: str
    content: str
    well_formed: bool


def read_action(turn: str) -> Action:
    """Read the action of one turn.

    turn  text of the turn, including the opening `<think>` that the chat template may have written

    A proposal takes precedence over code, and several blocks of one kind are joined by newlines, as in MINT. Tags within a
    thought, closed or not, are ignored. Within a block, other tags are part of its content.
    """
    blocks: dict[str, list[str]] = {CALL: [], PROPOSAL: []}
    inside: re.Match[str] | None = None  # the open tag
    end = 0
    for tag in _TAGS.finditer(turn):
        if inside is None:
            inside = tag if not tag[0].startswith("</") else None
        elif tag[0] == "</" + inside[0][1:]:
            if kind := _KINDS.get(inside[0]):
                blocks[kind].append(turn[inside.end() : tag.start()])
                end = tag.end()
            inside = None
    count = len(blocks[CALL]) + len(blocks[PROPOSAL])
    well_formed = count == 1 and inside is None and not turn[end:].strip()
    for kind in (PROPOSAL, CALL):
        if blocks[kind]:
            return Action(kind, "\n".join(blocks[kind]).strip("\n"), well_formed)
    return Action(NOTHING, "", False)
